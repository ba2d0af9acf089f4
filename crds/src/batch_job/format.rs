//! `spec.input.format` and `spec.input.compression`: what files hold.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How rows are laid out in a file.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub enum InputFormat {
    /// One JSON object per line.
    Jsonl,
    /// RFC 4180 with a header row.
    Csv,
    /// Apache Parquet.
    Parquet,
    /// One text per line.
    Text,
}

/// How a file is compressed.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}
