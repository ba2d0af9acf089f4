//! Whole programs under faults: the built binaries are started as real processes, killed, stalled
//! and cut off, and a checker reads what they leave. That is all in `tests/`.
//!
//! The library holds what several test programs share: the checker, processes, and the real servers
//! that tests start for themselves, here and in other crates.

pub mod api_proxy;
pub mod certificates;
pub mod collector;
pub mod files;
pub mod history;
pub mod postgres_server;
pub mod process;
pub mod redis_server;
pub mod remote;
pub mod s3_proxy;
pub mod s3_server;
pub mod skips;
pub mod starting;
pub mod sweeper;
