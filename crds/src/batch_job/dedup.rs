//! `spec.dedup`: rows like an earlier one, which get its answer instead of being asked.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which rows are not asked because an earlier row of the job is asked the same. A row whose text, or
/// whose fields that prompts are made of, are equal to those of an earlier one always is a duplicate.
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Dedup {
    /// Rows that are almost the same as an earlier one, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<Near>,
}

/// Which rows are almost the same.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("(self.method == 'Embedding') == has(self.from) && has(self.from) == has(self.step)")
        .message("method Embedding needs from, the output of an earlier job, and step, the name of its embedding step; without it remove both"),
    validation = Rule::new("!has(self.from) || !self.from.matches('^[A-Za-z0-9+.-]+://[^/]*[@:]')")
        .message("a URI cannot carry credentials, nor a port; give them through the environment of the worker"),
    validation = Rule::new("!has(self.from) || !self.from.matches('^s3://(.*/)?[.][.](/.*)?$')")
        .message("a URI cannot climb with `..`; name the place that it leads to"),
)]
pub struct Near {
    /// How rows are compared.
    #[serde(default)]
    pub method: NearMethod,
    /// How similar two rows must be at least. For `MinHash` the share of five words in a row that both
    /// have, among all that any of them has; for `Embedding` the cosine between their vectors.
    #[serde(default = "default_threshold")]
    #[schemars(range(min = 0.5, max = 1.0))]
    pub threshold: f64,
    /// Folder of the output of a finished job that made vectors of the same rows' texts, for `Embedding`
    /// alone: `s3://bucket/path`, `file:///path`, or, for a local run, a path relative to the manifest.
    /// The job's credentials must reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        // Credentials are for the rule to refuse, which never repeats them.
        regex(
            pattern = r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]*(/.*)?|file:///.+|[^:]+|[A-Za-z0-9+.-]+://[^/]*[@:].*)$"
        )
    )]
    pub from: Option<String>,
    /// Name of that job's step, for `Embedding` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub step: Option<String>,
}

/// How rows are compared that are almost the same.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NearMethod {
    /// By the smallest hashes of five words in a row each, whatever their case and punctuation.
    #[default]
    MinHash,
    /// By vectors that an earlier job made of their texts.
    Embedding,
}

fn default_threshold() -> f64 {
    0.9
}
