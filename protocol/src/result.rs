//! The lines of parts and error files.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::row::{Position, RowError};

/// One line of a part: a row that succeeded in every step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultLine {
    /// Value of the id field, if the job names one.
    pub id: Option<String>,
    /// Where the row stands in the input.
    pub position: Position,
    /// One entry per step, in the order of the job's steps.
    pub result: Box<RawValue>,
    /// The route whose answer it is, if the job has routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The arm of the route, if that has arms: its service's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// The row that was asked in its place, if it is a duplicate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<DuplicateOf>,
    /// The joined input fields, if the job joins any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Box<RawValue>>,
}

/// The row whose result or error a duplicate has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DuplicateOf {
    /// Where it stands in the input.
    #[serde(flatten)]
    pub position: Position,
    /// How similar both are, from 0 to 1; absent where what is asked about both is equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
}

/// One line of an error file: a row that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorLine {
    /// Value of the id field where it could be read.
    pub id: Option<String>,
    /// Where the row stands in the input.
    pub position: Position,
    /// The route that it failed in, if it came to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The arm of the route, if that has arms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Why it failed.
    pub error: RowError,
    /// The row that was asked in its place, if it is a duplicate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<DuplicateOf>,
}
