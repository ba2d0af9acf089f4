//! `spec.sharding`: how the dataset is cut.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the dataset is cut.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sharding {
    /// Size of a shard in bytes of its file. A shard should be 20 to 60 seconds of work: a kill
    /// costs at most the shard in hand.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub target_bytes: u32,
}

impl Default for Sharding {
    fn default() -> Self {
        Self {
            target_bytes: 4 << 20,
        }
    }
}
