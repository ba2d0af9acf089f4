//! A job that was checked: what plan, work and finish take instead of the manifests.

use std::time::Duration;

use millrace_protocol::plan::{Compression, Format};

/// A BatchJob and its InferenceService, checked and resolved. Every URI is absolute.
#[derive(Debug, Clone)]
pub struct CheckedJob {
    /// Namespace of the job; `default` for a local run that names none.
    pub namespace: String,
    /// Name of the job.
    pub name: String,
    /// What to do with each row, never empty.
    pub steps: Vec<Step>,
    /// The dataset.
    pub input: Input,
    /// Where results go.
    pub output: Output,
    /// Size of a shard in bytes of its file.
    pub shard_bytes_target: u64,
    /// How often a row is tried again.
    pub retry: Retry,
    /// How many times a shard is handed to a worker before it is given up, the first included.
    pub deliveries_max: u64,
    /// Hash of everything in job and service that decides what a result line says, hexadecimal.
    pub spec_sha256: String,
}

/// One model applied to every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Key of this step's value in the `result` object.
    pub name: String,
    /// Name of a model of the service.
    pub model: String,
}

/// The dataset.
#[derive(Debug, Clone)]
pub struct Input {
    /// Absolute URIs, possibly with glob characters.
    pub uris: Vec<String>,
    /// Layout of the rows; `None` means told from each file's name.
    pub format: Option<Format>,
    /// Compression; `None` means told from each file's name.
    pub compression: Option<Compression>,
    /// Which fields of a row are used.
    pub fields: Fields,
    /// Longest row in bytes.
    pub row_bytes_max: usize,
}

/// Which fields of a row are used. Meaningless for [`Format::Text`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Field that becomes the id.
    pub id: Option<String>,
    /// Field that holds the text.
    pub text: String,
    /// Fields carried into the result line.
    pub join: Vec<String>,
}

/// Where results go.
#[derive(Debug, Clone)]
pub struct Output {
    /// Absolute URI of the folder, without a trailing slash.
    pub uri: String,
    /// Whether parts are compressed with Zstandard.
    pub zstd: bool,
    /// Whether finish merges the parts into one file.
    pub merge: bool,
}

/// How often a row is tried again when the fault lies with the moment.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Tries per row, the first included.
    pub attempts_max: u32,
    /// Wait before the second try; doubles with each further one.
    pub backoff_initial: Duration,
    /// Longest wait between two tries.
    pub backoff_max: Duration,
}
