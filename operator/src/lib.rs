//! The operator: brings what is in the cluster to what BatchJobs and InferenceServices ask for.
//!
//! It never touches data and reads no Secret: planning, working and finishing is done by pods, which
//! report by termination message and by the counters of the lease store. Each kind is a folder
//! whose files are the steps of one visit: observe → check → decide → apply → report.

pub mod api;
pub mod apply;
pub mod batch_job;
pub mod conditions;
pub mod config;
pub mod context;
pub mod crd_check;
pub mod election;
pub mod http;
pub mod inference_service;
pub mod metrics;
pub mod names;
pub mod objects;
pub mod pod_network;
pub mod pod_redis;
pub mod pods;
pub mod prune;
pub mod reasons;
pub mod remembered;
pub mod secrets;
pub mod term;
pub mod visit;
pub mod watch;
