//! `spec.dedup`: rows like an earlier one, which get its answer instead of being asked.

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
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct Near {
    /// How rows are compared.
    #[serde(default)]
    pub method: NearMethod,
    /// How similar two rows must be at least: the share of five words in a row that both have, among
    /// all that any of them has.
    #[serde(default = "default_threshold")]
    #[schemars(range(min = 0.5, max = 1.0))]
    pub threshold: f64,
}

/// How rows are compared that are almost the same.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NearMethod {
    /// By the smallest hashes of five words in a row each, whatever their case and punctuation.
    #[default]
    MinHash,
}

fn default_threshold() -> f64 {
    0.9
}
