//! Models: tokenisers, loading, and the backends that compute.
pub mod backend;
pub mod config;
pub mod source;
#[cfg(feature = "torch")]
pub mod torch;
