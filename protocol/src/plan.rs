//! The plan of a run: its inputs, pinned, and the shards they were cut into.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Index of a shard in its run, from 0.
pub type ShardIndex = u32;

/// Number of a run in its output, from 1.
pub type RunNumber = u32;

/// The run that covers the whole input; each later one runs again what failed in the one before it.
pub const FIRST_RUN: RunNumber = 1;

/// `plan.json`: written create-only, so whoever plans second reads the plan that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Layout version of this file.
    pub version: u32,
    /// Number of this run in its output.
    pub run: RunNumber,
    /// Hash of everything in job and service that decides what a result line says.
    pub spec_sha256: String,
    /// Hash of everything in job and service that decides the answer to a row.
    pub answers_sha256: String,
    /// The fields that the first of these hashes is of, so that another spec can be told how it differs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spec: Vec<SpecField>,
    /// The input files in the order of their URIs.
    pub inputs: Vec<InputFile>,
    /// The shards; a shard's index is its place in this list.
    pub shards: Vec<Shard>,
    /// Expressions of which each makes a class of rows, the first one first, if the job says `order`.
    /// Shards are of the classes that they make, whatever the job says by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
    /// URI of the earlier output, if the job is incremental.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental_from: Option<String>,
    /// What is carried over from it, if its answers hold for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
    /// Which rows are duplicates, if the job says `dedup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup: Option<Dedup>,
}

/// A field of a job or a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecField {
    /// Where it stands, such as `spec.input.uris[0]`.
    pub path: String,
    /// Its value as JSON, cut where it is long, and a hash alone where it is a row or may hold a secret.
    pub value: String,
}

/// What an incremental run carries over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Carried {
    /// How the rows of both compare.
    #[serde(flatten)]
    pub difference: Difference,
    /// Where the earlier answers stand.
    #[serde(flatten)]
    pub answers: Answers,
    /// Digests of the models that made them, by name: what other models said is not carried over.
    pub models: BTreeMap<String, String>,
}

/// Where answers stand that rows get without being asked. For each shard a list names its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answers {
    /// Random id of the planner; names its lists.
    pub planner: String,
    /// Paths of the files that hold the lines, which lists name by their index.
    pub parts: Vec<String>,
}

/// `copies.json`: what duplicates get, once the rows that they are like have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copies {
    /// Where what they get stands.
    pub answers: Answers,
    /// How many rows the list of each shard names, for those that have one.
    pub rows: BTreeMap<ShardIndex, u64>,
}

/// Rows of a job that are not asked because an earlier row has the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dedup {
    /// How many.
    pub duplicates: u64,
    /// Random id of the planner; names its lists.
    pub planner: String,
}

/// How the rows of an incremental run compare with those of an earlier output, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// URI of the earlier output.
    pub from: String,
    /// Rows whose answers were carried over.
    pub unchanged: u64,
    /// Rows that were asked: new or changed ones, and those that failed there.
    pub fresh: u64,
    /// Answers there that no row asks for any more.
    pub gone: u64,
}

/// One input file, pinned to what it was when the run was planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InputFile {
    /// Absolute URI: `file:///…` or `s3://bucket/…`.
    pub uri: String,
    /// Stored size in bytes, compressed where the file is.
    pub size_bytes: u64,
    /// Entity tag that the store gave; another one later means that the input changed.
    pub etag: Option<String>,
    /// How rows are laid out in the decoded file.
    pub format: Format,
    /// How the file is compressed.
    pub compression: Compression,
    /// Column names, for CSV only: a shard in the middle of a file has no header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
}

/// How rows are laid out in a decoded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Format {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
}

/// A part of one input file that one worker works off under one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Index into [`Plan::inputs`].
    pub input: u32,
    /// Which rows of the file.
    #[serde(flatten)]
    pub range: ShardRange,
    /// Where a run runs failed rows again: only the rows of the range that failed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_in: Option<ShardOfRun>,
    /// Rows that are carried over from an earlier output; where there are any, a list names them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub carried: u64,
    /// Which of its rows are the shard's, where a list names duplicates among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<Duplicates>,
    /// The shard of an earlier run that was given up and is taken up again: what was paid for its rows
    /// lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_up: Option<ShardOfRun>,
    /// Which class of the range's rows is the shard's, if the job says `order`: that of an expression
    /// of [`Plan::order`], or the one after all of these, of all other rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u8>,
}

/// How a shard takes the duplicates in its range. Both name the list of these by the shard of the first
/// run that had the whole range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Duplicates {
    /// They are left to another shard.
    Without(ShardIndex),
    /// They alone are its rows, once all other shards are done: what became of the rows that they
    /// are like is copied.
    Only(ShardIndex),
}

fn is_zero(rows: &u64) -> bool {
    *rows == 0
}

/// A shard of an earlier run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShardOfRun {
    /// The run.
    pub run: RunNumber,
    /// The shard in that run's plan.
    pub shard: ShardIndex,
}

impl Shard {
    /// All rows of a range.
    pub fn of(input: u32, range: ShardRange) -> Self {
        Self {
            input,
            range,
            failed_in: None,
            carried: 0,
            duplicates: None,
            taken_up: None,
            class: None,
        }
    }

    /// The shard that its receipts lie with: itself, with this index in a run, or the one that it takes up.
    pub fn receipts(&self, run: RunNumber, shard: ShardIndex) -> ShardOfRun {
        self.taken_up.unwrap_or(ShardOfRun { run, shard })
    }

    /// Whether it copies what became of rows of other shards, and so comes after them.
    pub fn is_of_duplicates(&self) -> bool {
        matches!(self.duplicates, Some(Duplicates::Only(_)))
    }

    /// Whether no shard before it in its plan has the same range: whoever asks for each range once
    /// takes these.
    pub fn is_first_of_range(&self) -> bool {
        !self.is_of_duplicates() && self.class.is_none_or(|class| class == 0)
    }

    /// What shards of all runs are sorted by: their place in the input, and in one place their class.
    pub fn place(&self) -> (u32, u64, u64, Option<u8>) {
        match self.range {
            ShardRange::Bytes { start, end: _ } => (self.input, 0, start, self.class),
            ShardRange::Rows {
                row_group,
                start,
                end: _,
            } => (self.input, u64::from(row_group), start, self.class),
        }
    }
}

/// Which rows of a file belong to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ShardRange {
    /// The rows whose first byte lies in `start..end` of the decoded file.
    /// For a compressed file `start` is 0 and `end` is `u64::MAX`: all of it.
    Bytes {
        /// First byte, inclusive.
        start: u64,
        /// Last byte, exclusive.
        end: u64,
    },
    /// Rows `start..end` of one row group of a Parquet file.
    #[serde(rename_all = "camelCase")]
    Rows {
        /// Index of the row group in the file.
        row_group: u32,
        /// First row, inclusive.
        start: u64,
        /// Last row, exclusive.
        end: u64,
    },
}

impl Plan {
    /// Layout version that this build writes and reads.
    pub const VERSION: u32 = 1;

    /// The file that a shard lies in.
    pub fn input_of(&self, shard: &Shard) -> &InputFile {
        &self.inputs[shard.input as usize]
    }
}
