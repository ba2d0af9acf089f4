//! Jobs run by the built binaries on this machine: killed, stalled, raced and fed bad input.

#[path = "../../../worker/tests/support/redis_server.rs"]
mod redis_server;

mod history;
mod inputs;
mod kills;
mod leases;
mod poison;
mod process;
mod scene;
