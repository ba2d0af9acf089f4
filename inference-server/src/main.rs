//! The inference-server binary.
fn main() {}
