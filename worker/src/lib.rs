//! Everything between a manifest and its results: plan → claim → read → submit → commit → finish.
//!
//! The output store is the truth and the lease store a hint: a shard is done when its commit record
//! exists. The local run and the pods of a cluster drive this same code.

mod answerer;
pub mod changed;
pub mod commits;
mod content;
pub mod endpoints;
mod expression;
pub mod filter;
pub mod finish;
pub mod job;
pub mod manifests;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod normalize;
pub mod notify;
pub mod order;
pub mod output;
pub mod plan;
pub mod postgres;
pub mod prompt;
pub mod read;
pub mod reader;
mod records;
pub mod run;
pub mod secrets;
pub mod serve;
pub mod store;
pub mod trace;
pub mod work;
