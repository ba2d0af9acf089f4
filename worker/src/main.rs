//! The `millrace-worker` binary.
fn main() {}
