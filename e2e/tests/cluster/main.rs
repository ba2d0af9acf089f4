//! Jobs on a real Kubernetes: installed by Helm, worked off by real pods, on a real S3 server.
//!
//! They need root on Linux, or a cluster that the user names, or are skipped with a note of the reason.

mod alone;
mod api;
mod beside;
mod choice;
mod cluster;
mod commands;
mod ends;
mod examples;
mod faults;
mod jobs;
mod network;
mod objects;
mod policies;
mod remote;
mod requests;
mod services;
mod sinks;
mod store;
mod tenant;
mod turn;
