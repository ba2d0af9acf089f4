//! `manifest.json`: what an output holds, for readers.

use serde::{Deserialize, Serialize};

use crate::{
    commit::Commit,
    indexes::Indexes,
    plan::{Dedup, Difference, InputFile, RunNumber, Shard, ShardIndex},
    routes::RouteTally,
    tally::Tally,
};

/// Written last and replaced whole: whoever sees it sees a finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Layout version of this file.
    pub version: u32,
    /// The run that wrote it, the last one of the output.
    pub run: RunNumber,
    /// Hash of everything in job and service that decides what a result line says.
    pub spec_sha256: String,
    /// Hash of everything in job and service that decides the answer to a row.
    pub answers_sha256: String,
    /// Whether every shard of the plan is committed.
    pub complete: bool,
    /// Totals over all commits.
    pub totals: Tally,
    /// What became of the rows of each route and arm, if the job has routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteTally>,
    /// Currency of the cost in `totals` and commits; absent where the service names no prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// The input files, in the plan's order.
    pub inputs: Vec<InputFile>,
    /// The expressions that the shards' classes are made by, if the job says `order`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
    /// For each input range its live parts, in input order: one, or one for each class of its rows, and
    /// one more for each later run that ran failed rows again.
    pub parts: Vec<LivePart>,
    /// Shards of the run that were given up, with the reason; empty when `complete`.
    pub failed_shards: Vec<FailedShard>,
    /// The models that made the results.
    pub models: Vec<ManifestModel>,
    /// How the rows compare with those of the earlier output, if the job is incremental.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// The duplicates whose results were copied from other rows, if the job says `dedup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup: Option<Dedup>,
    /// The merged results below the output, if the job asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<String>,
    /// The table that all results and row errors were loaded into, if the job names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<String>,
    /// When finish wrote this file, RFC 3339.
    pub finished_at: String,
}

impl Manifest {
    /// Indexes of the shards that were given up, in short; nothing if none was.
    pub fn failed_indexes(&self) -> Option<String> {
        let failed = self.failed_shards.iter().map(|failed| failed.shard);
        failed.collect::<Indexes>().into_text()
    }
}

/// The live commit of one input range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LivePart {
    /// The run whose commit is live.
    pub run: RunNumber,
    /// The input range.
    pub range: Shard,
    /// The commit. Where a later run ran the failed rows again it names no errors any more, and counts
    /// none.
    pub commit: Commit,
}

impl LivePart {
    /// The part without its errors: a later run has the last word on those rows.
    pub fn without_errors(mut self) -> Self {
        self.commit.errors = None;
        self.commit.error_ledger = None;
        self.commit.rows.failed = 0;
        for route in &mut self.commit.routes {
            route.failed = 0;
        }
        self
    }
}

/// A shard that has no commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedShard {
    /// Index in the run's plan.
    pub shard: ShardIndex,
    /// The input range.
    pub range: Shard,
    /// Why it was given up.
    pub error: String,
}

/// A model that made results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestModel {
    /// Name in the service.
    pub name: String,
    /// SHA-256 over the model's files, as the server reports it.
    pub digest: String,
}

impl Manifest {
    /// Layout version that this build writes and reads.
    pub const VERSION: u32 = 1;
}
