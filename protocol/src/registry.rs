//! What the workers of a service find of its jobs, beside the leases.

use serde::{Deserialize, Serialize};

/// A job that the workers of its service may work on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredJob {
    /// Jobs with a higher priority are worked off first.
    pub priority: i32,
    /// The BatchJob and its InferenceService, as the run was planned with them.
    pub manifests: String,
    /// Name of the Secret with the credentials of input and output, if the job names one.
    pub credentials: Option<String>,
}
