//! The `millrace.dev/v1alpha1` API.
//!
//! The local run, the lint command and the operator read these same types and pass every manifest
//! through the same [`check`]. A field is here only if something acts on it.

mod amount;
pub mod batch_job;
pub mod check;
pub mod crd;
pub mod inference_service;
pub mod manifest;
pub mod names;
mod secret_ref;

pub use batch_job::{BatchJob, BatchJobSpec, BatchJobStatus};
pub use inference_service::{InferenceService, InferenceServiceSpec, InferenceServiceStatus};
pub use secret_ref::{SecretKeyRef, SecretRef};

/// Group and version of every kind in this crate.
pub const API_VERSION: &str = "millrace.dev/v1alpha1";
