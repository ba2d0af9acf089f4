//! What concerns requests: kept answers, and who may ask.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretRef;

/// Answers that are kept for texts that come again, of requests and jobs alike. An answer is kept by
/// the model's digest and settings, so that another model never gives it; of a remote model by where it is
/// and what it is asked.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cache {
    /// Whether answers are kept: in each pod, and in the cluster's cache Redis where it has one.
    pub enabled: bool,
    /// How long an answer is kept, at most twice as long where Redis keeps it too.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub ttl_seconds: u32,
    /// Most bytes of answers in each pod; what is used least goes first.
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_i64))]
    pub max_bytes: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            enabled: false,
            ttl_seconds: 3_600,
            max_bytes: 256 << 20,
        }
    }
}

/// Answers that the caches of a service's pods were asked for, one for each text and model, over the pods
/// that serve: a pod that goes takes its counts along.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct CacheStatus {
    /// Those that a tier of the cache knew.
    pub hits: u64,
    /// Those that none knew.
    pub misses: u64,
    /// The part of hits in both, from 0 to 1.
    pub hit_rate: f64,
}

/// Who may send requests over the network. Jobs need no keys.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Auth {
    /// Secret of the same namespace with one entry for each client: its name, and its key.
    pub secret_ref: SecretRef,
    /// Requests that each key may send to each pod in a minute, a sixth of them at once. By default
    /// as many as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_minute: Option<u32>,
}
