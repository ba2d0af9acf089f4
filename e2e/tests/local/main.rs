//! Jobs run by the built binaries on this machine: killed, stalled, raced and fed bad input.

mod collector;
mod inputs;
mod kills;
mod leases;
mod poison;
mod s3;
mod scene;
mod traces;
