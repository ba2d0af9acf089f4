//! A row of the input: where it stands and what it says.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Where a row stands in the input. Stable, known without counting the rows before it, and the key
/// of exactly-once: ids may repeat, positions never do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// URI of the input file, as the plan lists it.
    pub file: String,
    /// Place within the file.
    #[serde(flatten)]
    pub place: Place,
}

/// Place of a row within its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// First byte of the row, counted in the decoded (decompressed) file.
    Offset {
        /// Bytes from the start of the decoded file.
        offset: u64,
    },
    /// A row of a Parquet file.
    #[serde(rename_all = "camelCase")]
    Group {
        /// Index of the row group in the file.
        row_group: u32,
        /// Index of the row in its group.
        row: u64,
    },
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Offset { offset } => write!(f, "{}@{offset}", self.file),
            Place::Group { row_group, row } => write!(f, "{}@{row_group}.{row}", self.file),
        }
    }
}

/// A row that could be read.
#[derive(Debug, Clone)]
pub struct Row {
    /// Place within the shard's file.
    pub place: Place,
    /// Value of the id field, if the job names one.
    pub id: Option<String>,
    /// The text that goes to the models.
    pub text: String,
    /// The fields that prompts are made of, as one JSON object, if the job has prompts.
    pub prompted: Option<Box<RawValue>>,
    /// The fields that the job's filter names, as one JSON object, if it names any.
    pub filtered: Option<Box<RawValue>>,
    /// The joined input fields as one JSON object, if the job joins any.
    pub input: Option<Box<RawValue>>,
}

/// What reading one row gave: a row, or the reason why it cannot be one.
#[derive(Debug, Clone)]
pub enum ReadRow {
    /// A row for the models.
    Row(Row),
    /// A row that ends as a reported error without reaching a model.
    Bad {
        /// Place within the shard's file.
        place: Place,
        /// Value of the id field where it could be read.
        id: Option<String>,
        /// Why the row was refused.
        error: RowError,
    },
}

impl Row {
    /// What is asked about it: its text, or the fields that prompts are made of.
    pub fn asked(&self) -> &str {
        let prompted = self.prompted.as_ref();
        prompted.map_or(&self.text, |fields| fields.get())
    }
}

impl ReadRow {
    /// Place within the shard's file, readable or not.
    pub fn place(&self) -> Place {
        match self {
            ReadRow::Row(row) => row.place,
            ReadRow::Bad { place, .. } => *place,
        }
    }
}

/// Why a row ended as an error. Becomes the `error` object of an error line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RowError {
    /// What went wrong, for programs.
    pub code: RowErrorCode,
    /// What went wrong and what to do, for people. Never holds the row's text.
    pub message: String,
    /// The step that failed; absent when the row failed before any step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
}

impl RowError {
    /// An error that belongs to no step.
    pub fn new(code: RowErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            step: None,
        }
    }

    /// The error of a row whose answer holds a number without a JSON form.
    pub fn not_finite() -> Self {
        Self::new(
            RowErrorCode::NotFinite,
            "the model answered NaN or infinity",
        )
    }
}

/// The reasons a row can end as an error; the snake-case name is the `code` of the error line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowErrorCode {
    /// The row is not valid UTF-8.
    InvalidUtf8,
    /// The row is not valid JSON, is not an object, or nests too deep.
    InvalidJson,
    /// The row is not valid CSV, or has another number of fields than the header.
    InvalidCsv,
    /// The row is longer than `sharding.maxRowBytes`.
    RowTooLong,
    /// A field that the job names is missing.
    MissingField,
    /// A field that the job names has the wrong type.
    InvalidField,
    /// The text is empty.
    EmptyText,
    /// The text has more characters than the server takes.
    TextTooLong,
    /// The text has more chunks than the job allows.
    TooManyChunks,
    /// The text could not be tokenised within the deadline.
    TokenizeFailed,
    /// The model answered NaN or infinity.
    NotFinite,
    /// The model ran out of memory on this row alone.
    OutOfMemory,
    /// The model failed on this row alone.
    ModelFailed,
    /// A server that the user brings, or an API, takes everything but this row.
    Refused,
    /// The inference-server died on this row alone, more than once.
    ServerCrashed,
    /// The row was not answered in time.
    Timeout,
    /// What a language model answered is not what it was asked for, or was cut.
    AnswerInvalid,
}

impl RowErrorCode {
    /// Whether another try may succeed: the fault lies with the moment, not with the row.
    pub fn is_retryable(self) -> bool {
        match self {
            RowErrorCode::ModelFailed
            | RowErrorCode::Timeout
            | RowErrorCode::OutOfMemory
            | RowErrorCode::AnswerInvalid => true,
            RowErrorCode::InvalidUtf8
            | RowErrorCode::InvalidJson
            | RowErrorCode::InvalidCsv
            | RowErrorCode::RowTooLong
            | RowErrorCode::MissingField
            | RowErrorCode::InvalidField
            | RowErrorCode::EmptyText
            | RowErrorCode::TextTooLong
            | RowErrorCode::TooManyChunks
            | RowErrorCode::TokenizeFailed
            | RowErrorCode::NotFinite
            | RowErrorCode::Refused
            | RowErrorCode::ServerCrashed => false,
        }
    }

    /// The code as it stands in an error line.
    pub fn as_str(self) -> &'static str {
        match self {
            RowErrorCode::InvalidUtf8 => "invalid_utf8",
            RowErrorCode::InvalidJson => "invalid_json",
            RowErrorCode::InvalidCsv => "invalid_csv",
            RowErrorCode::RowTooLong => "row_too_long",
            RowErrorCode::MissingField => "missing_field",
            RowErrorCode::InvalidField => "invalid_field",
            RowErrorCode::EmptyText => "empty_text",
            RowErrorCode::TextTooLong => "text_too_long",
            RowErrorCode::TooManyChunks => "too_many_chunks",
            RowErrorCode::TokenizeFailed => "tokenize_failed",
            RowErrorCode::NotFinite => "not_finite",
            RowErrorCode::OutOfMemory => "out_of_memory",
            RowErrorCode::ModelFailed => "model_failed",
            RowErrorCode::Refused => "refused",
            RowErrorCode::ServerCrashed => "server_crashed",
            RowErrorCode::Timeout => "timeout",
            RowErrorCode::AnswerInvalid => "answer_invalid",
        }
    }
}

impl fmt::Display for RowErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_flat_in_json() {
        let bytes = Position {
            file: "file:///a".into(),
            place: Place::Offset { offset: 7 },
        };
        assert_eq!(
            serde_json::to_string(&bytes).unwrap(),
            r#"{"file":"file:///a","offset":7}"#
        );
        let group = Position {
            file: "file:///b".into(),
            place: Place::Group {
                row_group: 1,
                row: 2,
            },
        };
        let json = serde_json::to_string(&group).unwrap();
        assert_eq!(json, r#"{"file":"file:///b","rowGroup":1,"row":2}"#);
        assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), group);
    }

    #[test]
    fn a_code_reads_the_same_in_lines_and_messages() {
        let json = serde_json::to_string(&RowErrorCode::RowTooLong).unwrap();
        assert_eq!(json, format!("\"{}\"", RowErrorCode::RowTooLong));
    }
}
