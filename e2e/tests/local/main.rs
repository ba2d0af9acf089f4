//! Jobs run by the built binaries on this machine: killed, stalled, raced and fed bad input.

#[path = "../../../worker/tests/support/redis_server.rs"]
#[allow(
    dead_code,
    reason = "each test program needs a part of what the server can do"
)]
mod redis_server;

#[path = "../../../worker/tests/support/s3_server.rs"]
mod s3_server;

mod history;
mod inputs;
mod kills;
mod leases;
mod poison;
mod process;
mod s3;
mod scene;
