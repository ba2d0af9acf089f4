//! How far a job is, as it is told over HTTP: of a local run by the command itself, in a cluster by the
//! operator. Counts and states only, never a row.

use serde::{Deserialize, Serialize};

use crate::plan::RunNumber;
use crate::tally::Rows;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It waits, is planned, or its server is about to be ready.
    Preparing,
    /// Its rows are worked off, or what came of them is put together.
    Running,
    /// It rests because its user wants it so.
    Suspended,
    /// Every shard is committed.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// Its command was interrupted, and the same command goes on.
    Interrupted,
}

impl Phase {
    /// Whether nothing follows of this run.
    pub fn is_end(self) -> bool {
        match self {
            Phase::Preparing | Phase::Running | Phase::Suspended => false,
            Phase::Succeeded | Phase::Failed | Phase::Interrupted => true,
        }
    }

    /// The name of the server-sent event that tells of it: `progress`, and `end` for the last one.
    pub fn event(self) -> &'static str {
        match self.is_end() {
            true => "end",
            false => "progress",
        }
    }
}

/// What is told of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobProgress {
    /// Namespace of the job.
    pub namespace: String,
    /// Name of the job.
    pub name: String,
    /// Its object's id, in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The run that is told of.
    pub run: RunNumber,
    /// Where it stands.
    pub phase: Phase,
    /// Why, in one word, in a cluster: the reason of the condition `Succeeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the results go.
    pub output: String,
    /// What is counted, once there is something to count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Counts>,
    /// Why, in a sentence, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What is counted of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Shards with a commit.
    pub shards_committed: u32,
    /// Shards of the plan.
    pub shards_total: u32,
    /// Rows with a result.
    pub rows_succeeded: u64,
    /// Rows with an error.
    pub rows_failed: u64,
    /// Rows finished per second, lately.
    pub rows_per_second: f64,
    /// Tokens per second, lately.
    pub tokens_per_second: f64,
    /// Time left at this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

impl Counts {
    /// The counts of a run once its manifest says how it ended.
    pub fn finished(self, rows: Rows, failed_shards: usize) -> Self {
        Self {
            shards_committed: self.shards_total.saturating_sub(failed_shards as u32),
            rows_succeeded: rows.succeeded,
            rows_failed: rows.failed,
            eta_seconds: None,
            ..self
        }
    }
}
