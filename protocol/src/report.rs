//! What a plan or finish pod reports when it ends: a termination message, so at most 4 KiB of JSON.

use serde::{Deserialize, Serialize};

use crate::forecast::Forecast;
use crate::result::ErrorLine;
use crate::routes::RouteTally;
use crate::tally::Tally;

/// Most bytes of a report, as Kubernetes cuts a termination message.
pub const REPORT_BYTES_MAX: usize = 4096;

/// Most bytes of a message in a report.
const MESSAGE_BYTES_MAX: usize = 1024;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum Report {
    /// The run is planned and its open shards are queued.
    #[serde(rename_all = "camelCase")]
    Planned {
        /// Shards of the plan.
        shards: u32,
        /// Shards that were committed before.
        committed: u32,
        /// What the calls of an API will take and cost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        forecast: Option<Forecast>,
    },
    /// The manifest is written.
    #[serde(rename_all = "camelCase")]
    Finished {
        /// Whether every shard is committed.
        complete: bool,
        /// Shards of the plan.
        shards: u32,
        /// Shards that were given up.
        failed_shards: u32,
        /// Their indexes, as [`crate::indexes`] writes them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failed_indexes: Option<String>,
        /// Sums over the commits.
        tally: Tally,
        /// What became of the rows of each route and arm, if the job has routes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        routes: Vec<RouteTally>,
        /// The first few row errors.
        sample_errors: Vec<ErrorSample>,
        /// What went wrong beside the job, such as a receiver that could not be told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warning: Option<String>,
    },
    /// Shards are open; they were queued again.
    #[serde(rename_all = "camelCase")]
    Incomplete {
        /// How many.
        shards: u32,
    },
    /// The step failed.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// Why, and what to do.
        message: String,
    },
}

/// A row error without the row's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorSample {
    /// Where the row stands.
    pub position: String,
    /// The error's code.
    pub code: String,
    /// What went wrong.
    pub message: String,
}

impl ErrorSample {
    /// The sample of an error line.
    pub fn of(line: &ErrorLine) -> Self {
        Self {
            position: cut(&line.position.to_string()),
            code: line.error.code.as_str().to_owned(),
            message: cut(&line.error.message),
        }
    }
}

impl Report {
    /// The same report with a warning, cut.
    pub fn with_warning(mut self, said: Option<String>) -> Self {
        if let Report::Finished { warning, .. } = &mut self {
            *warning = said.as_deref().map(cut);
        }
        self
    }

    /// A failure, its message cut.
    pub fn failed(message: &str) -> Self {
        Report::Failed {
            message: cut(message),
        }
    }

    /// The report as a termination message. Samples that do not fit are left out, and then routes, which
    /// stand in the manifest.
    pub fn to_message(mut self) -> String {
        loop {
            let text = serde_json::to_string(&self).expect("a report is plain data");
            if text.len() <= REPORT_BYTES_MAX {
                return text;
            }
            match &mut self {
                Report::Finished { sample_errors, .. } if !sample_errors.is_empty() => {
                    sample_errors.pop();
                }
                Report::Finished { routes, .. } if !routes.is_empty() => routes.clear(),
                // Characters that JSON escapes can make a cut message long again.
                Report::Failed { message }
                | Report::Finished {
                    warning: Some(message),
                    ..
                } => {
                    message.truncate(message.floor_char_boundary(message.len() / 2));
                }
                Report::Planned { .. } | Report::Incomplete { .. } | Report::Finished { .. } => {
                    return text;
                }
            }
        }
    }

    /// Reads a termination message.
    pub fn from_message(message: &str) -> Option<Self> {
        serde_json::from_str(message).ok()
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_fits_into_a_termination_message_and_reads_back() {
        let sample = ErrorSample {
            position: "s3://bucket/rows.jsonl@1".into(),
            code: "invalid_json".into(),
            message: "\u{1}".repeat(900),
        };
        let report = Report::Finished {
            complete: true,
            shards: 3,
            failed_shards: 0,
            failed_indexes: Some("1,".repeat(crate::indexes::INDEXES_BYTES_MAX / 2)),
            tally: Tally::default(),
            routes: vec![RouteTally::default(); 50],
            sample_errors: vec![sample; 20],
            warning: Some("\u{1}".repeat(1_000)),
        };
        let message = report.to_message();
        assert!(message.len() <= REPORT_BYTES_MAX, "{}", message.len());
        let read = Report::from_message(&message).expect("a report");
        assert!(matches!(read, Report::Finished { complete: true, .. }));
        let failed = Report::failed(&"\u{1}".repeat(10_000)).to_message();
        assert!(failed.len() <= REPORT_BYTES_MAX);
        assert_eq!(Report::from_message("Killed"), None);
    }
}
