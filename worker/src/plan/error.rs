//! Why a job could not be planned.

use millrace_protocol::plan::SpecField;

use super::VectorsError;
use crate::{
    finish::FinishError,
    job::{CheckedJob, SpecDifference, difference},
    read::ReadError,
    records::RecordsError,
    store::StoreError,
    work::selection::SelectionError,
};

/// Why a job could not be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The glob characters of a URI do not parse.
    #[error("{uri} is not a valid pattern")]
    Pattern {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// A URI matches no file.
    #[error("spec.input.uris[{index}]: {uri} matches no file{hint}")]
    NoMatch {
        /// Which of the URIs it is.
        index: usize,
        /// The URI.
        uri: String,
        /// What to try instead, beginning with a separator; may be empty.
        hint: &'static str,
    },
    /// A file's name does not tell how it is laid out.
    #[error(
        "the name of {uri} does not tell its format (.jsonl, .ndjson, .csv, .parquet, .txt); \
         set input.format"
    )]
    UnknownFormat {
        /// URI of the file.
        uri: String,
    },
    /// A Parquet file is said to be compressed as a whole.
    #[error(
        "{uri} is Parquet, which compresses inside; remove .gz or .zst, or set input.compression \
         to None"
    )]
    CompressedParquet {
        /// URI of the file.
        uri: String,
    },
    /// Lines of text have no fields, and so no ids.
    #[error(
        "spec.input.idField means nothing for {uri}, whose lines are the texts: remove idField, or give \
         the rows as .jsonl"
    )]
    IdOfText {
        /// URI of the file.
        uri: String,
    },
    /// Results would be written over, or read as, input.
    #[error("the output {output} overlaps the input {input}; choose another output folder")]
    OutputOverlapsInput {
        /// URI of the output.
        output: String,
        /// URI of an input file, or the pattern that would match results.
        input: String,
    },
    /// The dataset has too many shards to list.
    #[error("the dataset has more than {shards_max} shards; raise sharding.targetBytes")]
    TooManyShards {
        /// The most that a plan may have.
        shards_max: usize,
    },
    /// A CSV file's first record is no header.
    #[error("the header of {uri} cannot be read: {reason}")]
    CsvHeader {
        /// URI of the file.
        uri: String,
        /// What is wrong.
        reason: String,
    },
    /// The output was made by another job or service.
    #[error(
        "the output {output} was planned by another spec ({difference}); choose another output, or \
         delete it"
    )]
    OtherSpec {
        /// URI of the output.
        output: String,
        /// How that differs from this job's spec.
        difference: SpecDifference,
    },
    /// The output was planned from another earlier output.
    #[error(
        "the output {output} was planned with spec.incremental.from naming {found}: leave it so, or \
         choose another output"
    )]
    OtherIncremental {
        /// URI of the output.
        output: String,
        /// URI that the plan names.
        found: String,
    },
    /// There is nothing whose failed rows could be run again.
    #[error(
        "run {run} runs again what failed in the run before it, and the manifest of {output} is not \
         that run's: let it finish first, or lower rerunFailed"
    )]
    NoEarlierRun {
        /// The run that was asked for.
        run: u32,
        /// URI of the output.
        output: String,
    },
    /// An incremental job names its own output.
    #[error(
        "spec.incremental.from is the job's own output {0}: name an earlier one, and write to another \
         folder"
    )]
    IncrementalFromItself(String),
    /// An incremental job names an output that is not finished.
    #[error(
        "spec.incremental.from: {0} has no manifest.json: it is no output of a finished BatchJob"
    )]
    NoEarlierOutput(String),
    /// An incremental job names an output that cannot be read.
    #[error("spec.incremental.from: {from} cannot be read")]
    EarlierOutput {
        /// URI of the earlier output.
        from: String,
        /// What is wrong.
        source: Box<FinishError>,
    },
    /// An output that an incremental job names was changed.
    #[error("spec.incremental.from: {0} is missing: the output was changed by hand")]
    NoLedger(String),
    /// The list of the duplicates of a shard is gone.
    #[error("{0} is missing, which names duplicates: the output was changed by hand")]
    NoList(String),
    /// There are no vectors to compare rows by.
    #[error("rows cannot be compared by the vectors of spec.dedup.near.from")]
    Vectors(#[source] Box<VectorsError>),
    /// The temporary files of a comparison failed.
    #[error("rows cannot be compared with earlier ones: a temporary file failed")]
    Spill(#[source] std::io::Error),
    /// The plan that is there cannot be understood.
    #[error("{path} is no plan that this version understands: {reason}")]
    BadPlan {
        /// Path of the plan.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// It is not known which rows are a shard's.
    #[error("it is not known which rows a shard has")]
    Selection(#[source] Box<SelectionError>),
    /// An input file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SelectionError> for PlanError {
    fn from(error: SelectionError) -> Self {
        match error {
            SelectionError::Duplicates(RecordsError::NotFound(path)) => Self::NoList(path),
            SelectionError::Duplicates(RecordsError::Store(error)) => error.into(),
            other => Self::Selection(Box::new(other)),
        }
    }
}

impl From<VectorsError> for PlanError {
    fn from(error: VectorsError) -> Self {
        Self::Vectors(Box::new(error))
    }
}

impl PlanError {
    /// The output was planned by another spec than that of this job, of this hash and with these fields.
    pub(super) fn other_spec(job: &CheckedJob, sha256: &str, fields: &[SpecField]) -> Self {
        // A plan of an earlier version names none.
        let named = (!fields.is_empty()).then(|| difference(fields, &job.spec_fields));
        let difference = named.flatten().unwrap_or_else(|| SpecDifference::Unnamed {
            before: sha256.to_owned(),
            now: job.spec_sha256.clone(),
        });
        PlanError::OtherSpec {
            output: job.output.uri.clone(),
            difference,
        }
    }
}
