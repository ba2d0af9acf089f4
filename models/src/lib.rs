//! Models: tokenisers, loading, and the backends that compute.
//!
//! Knows nothing of queues, requests or jobs. libtorch is linked only with the `torch` feature.

pub mod backend;
pub mod config;
pub mod fake;
pub mod model;
pub mod prediction;
pub mod settings;
pub mod source;
pub mod tokenizer;
#[cfg(feature = "torch")]
pub mod torch;
