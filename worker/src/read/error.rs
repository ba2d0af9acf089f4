//! Why a shard could not be read. A row that cannot be read is no such reason: it becomes a row error.

use crate::store::StoreError;

/// Why a shard could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is no longer what it was when the run was planned.
    #[error(
        "{uri} changed since the run was planned: its entity tag is {found} instead of {expected}; \
         start a new run into another output"
    )]
    InputChanged {
        /// URI of the file.
        uri: String,
        /// Entity tag, or size where the store has no tags, that the plan pinned.
        expected: String,
        /// What is there now.
        found: String,
    },
    /// The file is gone.
    #[error("{uri} is not there any more")]
    NotFound {
        /// URI of the file.
        uri: String,
    },
    /// The file ends in the middle of its encoding.
    #[error("{uri} is cut off: its {encoding} encoding ends too early")]
    Truncated {
        /// URI of the file.
        uri: String,
        /// `gzip`, `zstd` or `Parquet`.
        encoding: &'static str,
    },
    /// The file does not follow its encoding.
    #[error("{uri} is not valid {encoding}: {reason}")]
    Decode {
        /// URI of the file.
        uri: String,
        /// `gzip`, `zstd`, `CSV` or `Parquet`.
        encoding: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The file has no such column.
    #[error("{uri} has no column {column:?}; it has {}", .columns.join(", "))]
    MissingColumn {
        /// URI of the file.
        uri: String,
        /// The column that the job names.
        column: String,
        /// The first columns that the file has.
        columns: Vec<String>,
    },
    /// A column that the job names cannot be used as the job wants.
    #[error("column {column:?} of {uri} is of type {found}, but must be {expected}")]
    ColumnType {
        /// URI of the file.
        uri: String,
        /// The column that the job names.
        column: String,
        /// Its type.
        found: String,
        /// The types that would do.
        expected: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ReadError {
    /// Whether trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::InputChanged { .. }
            | Self::NotFound { .. }
            | Self::Truncated { .. }
            | Self::Decode { .. }
            | Self::MissingColumn { .. }
            | Self::ColumnType { .. } => true,
            Self::Store(error) => error.is_permanent(),
        }
    }
}
