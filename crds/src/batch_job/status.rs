//! What is said of a job: its status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Estimate, RouteCounts, Spent};

/// What became of the job so far. The same object is printed by a local run with `-o json`.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchJobStatus {
    /// `Succeeded` says whether every shard is committed; `Ready`, `Reconciling` and `Stalled` say
    /// the same to tools that wait for any kind of object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The run that this status speaks of, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// When the job began: its first plan was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// Committed shards in percent, such as `42%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Rows by how they ended, summed over committed shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<RowCounts>,
    /// Shards by state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<ShardCounts>,
    /// Indexes of the shards that were given up, as a Job of Kubernetes writes them: `1,3-5,7`. Three
    /// dots end a list that is cut; manifest.json has all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub failed_indexes: Option<String>,
    /// Tokens that went through models, without padding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// What its calls cost, where its service names prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Spent>,
    /// What its calls are going to take, where it asks an API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// Pods of the service that work for the job's service now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// When the work will be done at the present rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<Time>,
    /// Rows finished per second: lately, and over the whole job once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_second: Option<f64>,
    /// What became of the rows of each route and arm, once the job is over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub routes: Vec<RouteCounts>,
    /// When the manifest was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Where the results are: the output's absolute URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The first few row errors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub sample_errors: Vec<SampleError>,
}

/// Rows by how they ended.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows with a result line.
    pub succeeded: u64,
    /// Rows with an error line.
    pub failed: u64,
    /// Rows filtered out on purpose.
    pub skipped: u64,
}

/// Shards by state.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCounts {
    /// Shards of the plan.
    pub total: u32,
    /// Shards with a commit.
    pub committed: u32,
    /// Shards that were given up.
    pub failed: u32,
    /// Shards that wait until all others are done, since their rows get what those of others end as.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waiting: u32,
}

impl ShardCounts {
    /// Shards that workers have still to do before any other may begin.
    pub fn left(&self) -> u32 {
        let Self {
            total,
            committed,
            failed,
            waiting,
        } = self;
        total.saturating_sub(committed + failed + waiting)
    }
}

fn is_zero(shards: &u32) -> bool {
    *shards == 0
}

/// One row error, without the row's text.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleError {
    /// Where the row stands, such as `s3://bucket/file.jsonl@1024`.
    pub position: String,
    /// The error's code, such as `invalid_json`.
    pub code: String,
    /// What went wrong and what to do.
    pub message: String,
}
