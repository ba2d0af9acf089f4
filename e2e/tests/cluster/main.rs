//! Jobs on a real Kubernetes: installed by Helm, worked off by real pods, on a real S3 server.
//!
//! They need root on Linux, or are skipped with one line that says so.

mod cluster;
mod commands;
mod ends;
mod faults;
mod jobs;
mod releases;
mod remote;
mod requests;
mod tenant;
