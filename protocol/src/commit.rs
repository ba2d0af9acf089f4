//! The record that makes a shard done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    cost::Cost, lease::Epoch, plan::ShardIndex, routes::RouteTally, tally::Rows, tally::Tally,
};

/// A commit record, created with put-if-absent: the first commit of a shard wins, whatever its
/// epoch, and every other attempt discards its own part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// The shard.
    pub shard: ShardIndex,
    /// Epoch of the lease under which the shard was worked off.
    pub epoch: Epoch,
    /// Random id of the attempt; names its part and its errors.
    pub attempt: String,
    /// Path of the part below the output; absent when no row succeeded.
    pub part: Option<String>,
    /// Path of the error file below the output; absent when no row failed.
    pub errors: Option<String>,
    /// Path of the ledger below the output; absent when no row succeeded.
    pub ledger: Option<String>,
    /// Path of the same of the error file, for a job with `dedup`; absent when no row failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_ledger: Option<String>,
    /// How the rows ended.
    pub rows: Rows,
    /// Rows among them whose answers were carried over from an earlier output.
    #[serde(default)]
    pub carried: u64,
    /// Rows among them that are duplicates, whose results were copied from other rows of the job.
    #[serde(default)]
    pub duplicates: u64,
    /// Tokens that went through the models.
    pub tokens: u64,
    /// What its calls of a paid API cost.
    #[serde(default, skip_serializing_if = "Cost::is_nothing")]
    pub cost: Cost,
    /// What became of the rows of each route and arm, if the job has routes: rows that were never
    /// offered to one, as those that could not be read, are of none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteTally>,
    /// SHA-256 of the part's stored bytes, hexadecimal; absent when there is no part.
    pub sha256: Option<String>,
    /// Digest of each model that made the results, by name: parts of one run that were made by
    /// different models can be told apart.
    #[serde(default)]
    pub models: BTreeMap<String, String>,
}

impl Commit {
    /// The commit's counts.
    pub fn tally(&self) -> Tally {
        Tally {
            rows: self.rows,
            tokens: self.tokens,
            cost: self.cost,
        }
    }
}
