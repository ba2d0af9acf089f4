//! Reads an output the way its users do: visible lines only, in input order, streaming.

use std::collections::HashSet;
use std::pin::Pin;

use async_compression::tokio::bufread::ZstdDecoder;
use futures::{Stream, StreamExt, TryStreamExt};
use millrace_protocol::commit::Commit;
use millrace_protocol::manifest::LivePart;
use millrace_protocol::plan::{FIRST_RUN, Plan, RunNumber, ShardIndex};
use millrace_protocol::report::ErrorSample;
use millrace_protocol::result::ErrorLine;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio_util::io::StreamReader;

use crate::commits::{self, CommitsError};
use crate::finish::{self, FinishError};
use crate::plan::{self, PlanError};
use crate::store::{Location, StoreError, StoredObject};

/// Bytes read ahead of the lines handed out.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// Row errors in a report.
const SAMPLE_ERRORS_MAX: usize = 20;

/// Why an output could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Nothing of millrace is there.
    #[error("{location} holds neither a manifest nor a plan: it is not the output of a BatchJob")]
    NotAnOutput {
        /// The folder, as people write it.
        location: String,
    },
    /// The plan could not be read.
    #[error("the plan could not be read")]
    Plan(#[from] PlanError),
    /// The manifest could not be read.
    #[error("the manifest could not be read")]
    Manifest(#[from] FinishError),
    /// The commits could not be read.
    #[error("the commits could not be read")]
    Commits(#[from] CommitsError),
    /// A file could not be read.
    #[error("a file of the output could not be read")]
    Store(#[from] StoreError),
    /// A file broke off or cannot be decompressed.
    #[error("{path} of shard {shard} cannot be read")]
    Broken {
        /// The shard.
        shard: ShardIndex,
        /// The file below the output.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what its file should hold.
    #[error("{path} of shard {shard} holds a line that is not an error line: {message}")]
    BadLine {
        /// The shard.
        shard: ShardIndex,
        /// The file below the output.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// The visible parts of an output, in input order, and whether its run is finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Visible {
    /// One per committed shard.
    pub parts: Vec<LivePart>,
    /// Whether a manifest was written.
    pub finished: bool,
}

/// What can be seen of an output: by its manifest, or by its commits while the first run goes on.
pub async fn visible(output: &Location) -> Result<Visible, OutputError> {
    if let Some(manifest) = finish::read_manifest(output).await? {
        return Ok(Visible {
            parts: manifest.parts,
            finished: true,
        });
    }
    let plan = plan::read(output, FIRST_RUN).await?;
    let plan = plan.ok_or_else(|| OutputError::NotAnOutput {
        location: output.name.clone(),
    })?;
    let committed = commits::list(output, plan.run).await?;
    Ok(Visible {
        parts: live(&plan, committed),
        finished: false,
    })
}

fn live(plan: &Plan, committed: Vec<Commit>) -> Vec<LivePart> {
    let live = committed.into_iter().filter_map(|commit| {
        let range = *plan.shards.get(commit.shard as usize)?;
        Some(LivePart {
            run: plan.run,
            range,
            commit,
        })
    });
    live.collect()
}

/// Looks at an output again and again while its run goes on.
#[derive(Debug, Default)]
pub struct Follower {
    plan: Option<Plan>,
    seen: HashSet<(RunNumber, ShardIndex)>,
}

impl Follower {
    /// The parts that appeared since the last look, and whether there will be no more. Before its run is
    /// planned an output has none.
    pub async fn look(&mut self, output: &Location) -> Result<Visible, OutputError> {
        let manifest = finish::read_manifest(output).await?;
        let finished = manifest.is_some();
        let parts = match (manifest, &self.plan) {
            (Some(manifest), _) => manifest.parts,
            (None, Some(plan)) => {
                let is_new = |shard| !self.seen.contains(&(plan.run, shard));
                let committed = commits::list_where(output, plan.run, is_new).await?;
                live(plan, committed)
            }
            (None, None) => {
                self.plan = plan::read(output, FIRST_RUN).await?;
                Vec::new()
            }
        };
        let parts = parts.into_iter();
        let parts = parts.filter(|part| self.seen.insert((part.run, part.commit.shard)));
        Ok(Visible {
            parts: parts.collect(),
            finished,
        })
    }
}

/// The result lines of `parts`, without their newlines.
pub fn results<'a>(
    output: &'a Location,
    parts: &'a [LivePart],
) -> impl Stream<Item = Result<String, OutputError>> + 'a {
    lines(output, parts, |commit| commit.part.as_deref()).map_ok(|line| line.text)
}

/// The error lines of `parts`.
pub fn errors<'a>(
    output: &'a Location,
    parts: &'a [LivePart],
) -> impl Stream<Item = Result<ErrorLine, OutputError>> + 'a {
    lines(output, parts, |commit| commit.errors.as_deref()).and_then(|line| async move {
        let Line { text, shard, path } = line;
        parse_error(&text, shard, path)
    })
}

/// The first row errors of `parts`, as a report names them.
pub async fn samples(
    output: &Location,
    parts: &[LivePart],
) -> Result<Vec<ErrorSample>, OutputError> {
    let first = errors(output, parts).take(SAMPLE_ERRORS_MAX);
    first
        .map_ok(|line| ErrorSample::of(&line))
        .try_collect()
        .await
}

/// The error lines of one shard, one by one.
pub struct ErrorLines {
    reader: OutputReader,
    shard: ShardIndex,
    path: String,
}

impl ErrorLines {
    /// Opens an error file by its path below the output.
    pub async fn open(
        output: &Location,
        shard: ShardIndex,
        path: String,
    ) -> Result<Self, OutputError> {
        let reader = open(output, &path).await?;
        Ok(Self {
            reader,
            shard,
            path,
        })
    }

    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ErrorLine>, OutputError> {
        let mut text = String::new();
        let read = self.reader.read_line(&mut text).await;
        let read = read.map_err(|source| OutputError::Broken {
            shard: self.shard,
            path: self.path.clone(),
            source,
        })?;
        if read == 0 {
            return Ok(None);
        }
        parse_error(&text, self.shard, &self.path).map(Some)
    }
}

fn parse_error(text: &str, shard: ShardIndex, path: &str) -> Result<ErrorLine, OutputError> {
    serde_json::from_str(text).map_err(|error| OutputError::BadLine {
        shard,
        path: path.to_owned(),
        message: error.to_string(),
    })
}

struct Line<'a> {
    text: String,
    shard: ShardIndex,
    path: &'a str,
}

fn lines<'a>(
    output: &'a Location,
    parts: &'a [LivePart],
    file: impl Fn(&'a Commit) -> Option<&'a str> + 'a,
) -> impl Stream<Item = Result<Line<'a>, OutputError>> + 'a {
    let files = parts.iter().filter_map(move |part| {
        let path = file(&part.commit)?;
        Some((part.commit.shard, path))
    });
    futures::stream::iter(files)
        .then(move |(shard, path)| async move {
            let reader = open(output, path).await?;
            let lines = futures::stream::unfold(Some(reader), move |reader| async move {
                let mut reader = reader?;
                let mut text = String::new();
                match reader.read_line(&mut text).await {
                    Ok(0) => None,
                    Ok(_) => {
                        text.truncate(text.trim_end_matches('\n').len());
                        Some((Ok(Line { text, shard, path }), Some(reader)))
                    }
                    Err(source) => {
                        let path = path.to_owned();
                        Some((
                            Err(OutputError::Broken {
                                shard,
                                path,
                                source,
                            }),
                            None,
                        ))
                    }
                }
            });
            Ok::<_, OutputError>(lines)
        })
        .try_flatten()
}

/// A file of an output, decompressed.
pub(crate) type OutputReader = Pin<Box<dyn AsyncBufRead + Send>>;

/// Opens a file of an output by its path below it.
pub(crate) async fn open(
    output: &Location,
    relative_path: &str,
) -> Result<OutputReader, StoreError> {
    let path = output.below(relative_path);
    let found = StoredObject::open(&output.store, &path)
        .await
        .map_err(|source| StoreError::at(&path, source))?;
    let bytes = StreamReader::new(found.stream().map_err(std::io::Error::other).boxed());
    if !relative_path.ends_with(".zst") {
        return Ok(Box::pin(BufReader::with_capacity(READ_AHEAD_BYTES, bytes)));
    }
    let mut decoder = ZstdDecoder::new(bytes);
    // A part is one frame per slice of lines.
    decoder.multiple_members(true);
    Ok(Box::pin(BufReader::with_capacity(
        READ_AHEAD_BYTES,
        decoder,
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::{StoreOptions, Stores};

    #[tokio::test]
    async fn a_report_names_the_first_rows_that_failed_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let part = |shard: usize, failed: std::ops::Range<u64>| -> LivePart {
            let path = format!("{shard}.jsonl");
            let line = |offset| {
                let position = json!({"file": "rows.jsonl", "offset": offset});
                let error = json!({"code": "invalid_json", "message": "no JSON"});
                json!({"id": null, "position": position, "error": error}).to_string() + "\n"
            };
            let rows = json!({"succeeded": 0, "failed": failed.end - failed.start, "skipped": 0});
            let lines: String = failed.map(line).collect();
            std::fs::write(folder.path().join(&path), lines).unwrap();
            let commit = json!({
                "shard": shard, "epoch": 1, "attempt": "a", "part": null, "errors": path,
                "ledger": null, "rows": rows, "tokens": 0, "sha256": null,
            });
            let range = json!({"input": 0, "kind": "bytes", "start": 0, "end": 100});
            serde_json::from_value(json!({"run": 1, "range": range, "commit": commit})).unwrap()
        };
        let stores = Stores::new(StoreOptions::default());
        let uri = format!("file://{}", folder.path().display());
        let output = stores.open(&uri).unwrap();
        let few = samples(&output, &[part(0, 0..2)]).await.unwrap();
        let positions: Vec<&str> = few.iter().map(|it| it.position.as_str()).collect();
        assert_eq!(positions, ["rows.jsonl@0", "rows.jsonl@1"]);
        let many = [part(0, 0..2), part(1, 2..25)];
        let many = samples(&output, &many).await.unwrap();
        assert_eq!(many.len(), 20);
        assert_eq!(many[19].position, "rows.jsonl@19");
    }
}
