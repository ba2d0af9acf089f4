//! What the workers of a service find of its jobs, and what is found of them, beside the leases.

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

/// What a worker says of itself, once a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerReport {
    /// Shards that it holds a lease of.
    pub shards_in_hand: u32,
    /// How long it has held none.
    pub idle_seconds: u32,
    /// Tokens per second that went through its server lately, while it held shards; absent before
    /// there is anything to measure.
    pub tokens_per_second: Option<f64>,
    /// What its server's cache knew so far; absent where nobody could ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheCounts>,
}

/// Answers that a server was asked for since it began, where it keeps any: one for each text and model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCounts {
    /// Those that a tier of the cache knew.
    pub hits: u64,
    /// Those that none knew.
    pub misses: u64,
}
