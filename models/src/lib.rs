//! Models: the backends that compute, and what their numbers mean.
//!
//! Knows nothing of queues, requests or jobs. libtorch is linked only with the `torch` feature.

pub mod backend;
pub mod fake;
mod fingerprint;
pub mod model;
pub mod prediction;
#[cfg(feature = "torch")]
pub mod torch;

pub use millrace_model_files::{chunks, config, folder, source, tokenizer};
