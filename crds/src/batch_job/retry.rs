//! `spec.retry`: how often rows are tried again.

use kube::KubeSchema;
use kube::core::Duration;
use serde::{Deserialize, Serialize};

/// How often a row is tried again when the fault lies with the moment, not with the row.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.initialBackoff) > duration('0s') && duration(self.maxBackoff) >= duration(self.initialBackoff) && duration(self.maxBackoff) <= duration('1h')")
        .message("maxBackoff must be at least initialBackoff and at most 1h, and both above zero"),
)]
pub struct Retry {
    /// Tries per row, the first one included.
    #[serde(default = "default_max_attempts")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: u32,
    /// Wait before the second try, such as `200ms`; doubles with each further one.
    #[serde(default = "default_initial_backoff")]
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"))]
    pub initial_backoff: Duration,
    /// Longest wait between two tries.
    #[serde(default = "default_max_backoff")]
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"))]
    pub max_backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: default_max_attempts(),
            initial_backoff: default_initial_backoff(),
            max_backoff: default_max_backoff(),
        }
    }
}

fn default_max_attempts() -> u32 {
    3
}

fn default_initial_backoff() -> Duration {
    std::time::Duration::from_millis(200).into()
}

fn default_max_backoff() -> Duration {
    std::time::Duration::from_secs(10).into()
}
