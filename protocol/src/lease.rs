//! The right to work on a shard for a while.

use serde::{Deserialize, Serialize};

use crate::plan::ShardIndex;

/// Counts the claims of a shard, from 1. A lease with an older epoch than the store's is stale.
pub type Epoch = u64;

/// One claim of one shard by one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The shard.
    pub shard: ShardIndex,
    /// Which claim of the shard this is.
    pub epoch: Epoch,
    /// Random token of the worker that holds it.
    pub owner: String,
}

/// What is said of shards that were not worked off because too many rows failed.
pub const TOO_MANY_FAILED: &str =
    "more rows failed than spec.maxFailedRows allows before this shard was done";

/// What is said of shards that were not worked off because too many shards were given up.
pub const TOO_MANY_FAILED_INDEXES: &str =
    "more shards were given up than spec.maxFailedIndexes allows before this shard was done";

/// What is said of shards that were not worked off because the job's budget was spent.
pub const BUDGET_SPENT: &str = "spec.budget.maxCost was spent before this shard was done";

/// A shard that was given up, with the last reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The shard.
    pub shard: ShardIndex,
    /// How many times it was delivered to a worker.
    pub deliveries: u64,
    /// Why the last delivery failed.
    pub error: String,
}
