//! Models: tokenisers, loading, and the backends that compute.
pub mod backend;
