//! Jobs run by the built binaries on this machine: killed, stalled, raced and fed bad input.

mod chunks;
mod dedup;
mod examples;
mod inputs;
mod kills;
mod leases;
mod notify;
mod order;
mod poison;
mod postgres;
mod s3;
mod scene;
mod traces;
