//! The rows of a shard whose answers stand somewhere: an incremental run copies them from an earlier
//! output, and duplicates get them from the rows that they are like. All others are asked.

use std::io::Read;
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use millrace_protocol::layout;
use millrace_protocol::ledger::CarriedRow;
use millrace_protocol::plan::{Answers, Carried, Copies, Shard, ShardIndex};
use millrace_protocol::row::{Position, RowError};
use object_store::ObjectStoreExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ShardContext;
use super::list::RowList;
use crate::job;
use crate::records::RecordsError;
use crate::store::{self, Location, StoreError};

/// Bytes between two lines that are read as well rather than asked for apart.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Bytes that are asked for at a time.
const SPAN_BYTES_MAX: u64 = 4 << 20;
/// Requests at a time.
const SPANS_AT_ONCE: usize = 4;

/// Why an earlier answer cannot be carried over.
#[derive(Debug, thiserror::Error)]
pub enum CarriedError {
    /// A file is not there any more.
    #[error(
        "{0} is gone, of which the plan says that it holds answers: bring it back, or plan anew \
         into another output"
    )]
    Gone(String),
    /// A file is not what the plan says.
    #[error("{path} does not hold the answers that the plan says: it was changed by hand")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CarriedError {
    /// Whether another try cannot help.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Unreadable { .. })
    }
}

impl From<RecordsError> for CarriedError {
    fn from(error: RecordsError) -> Self {
        match error {
            RecordsError::NotFound(path) => Self::Gone(path),
            RecordsError::Store(error) => Self::Store(error),
        }
    }
}

/// The list of a shard's rows that are not asked because their answers stand somewhere.
pub type CarriedRows = RowList<{ CarriedRow::BYTES }>;

/// Opens the list of a shard; `None` where all its rows are asked.
pub async fn open_list(
    ctx: &ShardContext,
    index: ShardIndex,
) -> Result<Option<CarriedRows>, CarriedError> {
    let run = ctx.plan.run;
    let shard = &ctx.plan.shards[index as usize];
    let planner = if shard.is_of_duplicates() {
        let Copies { answers, rows } = copies(ctx).await?;
        rows.contains_key(&index).then_some(&answers.planner)
    } else {
        carried(ctx, shard).map(|carried| &carried.answers.planner)
    };
    let Some(planner) = planner else {
        return Ok(None);
    };
    let list = layout::carried(run, planner, index);
    Ok(Some(RowList::open(&ctx.output, &list).await?))
}

/// What is carried over from an earlier output into a shard; `None` where other models stand ready now
/// than those that gave the answers.
fn carried<'a>(ctx: &'a ShardContext, shard: &Shard) -> Option<&'a Carried> {
    let carried = ctx.plan.carried.as_ref().filter(|_| shard.carried > 0)?;
    let asked = match &ctx.job.routing {
        None => job::models(&ctx.job.steps),
        Some(_) => ctx.models.keys().cloned().collect(),
    };
    let is_same = |model: &String| carried.models.get(model) == ctx.models.get(model);
    if asked.iter().all(is_same) {
        return Some(carried);
    }
    tracing::warn!("other models made the earlier output: every row of the shard is asked anew");
    None
}

/// What finish found out for duplicates before their shards were queued.
async fn copies(ctx: &ShardContext) -> Result<&Copies, CarriedError> {
    let reading = || async {
        let path = ctx.output.below(&layout::copies(ctx.plan.run));
        let Some(bytes) = store::read(&ctx.output.store, &path).await? else {
            return Err(CarriedError::Gone(path.to_string()));
        };
        serde_json::from_slice(&bytes).map_err(|source| CarriedError::Unreadable {
            path: path.to_string(),
            source: source.into(),
        })
    };
    ctx.copies.get_or_try_init(reading).await
}

/// The output that holds the answers.
pub struct Earlier<'a> {
    output: Location,
    answers: &'a Answers,
}

/// What became of the row whose answer another one gets.
pub struct EarlierRow {
    /// Where it stands.
    pub position: Position,
    /// The route that it took, if the job has routes.
    pub route: Option<String>,
    /// Its arm, if it has arms.
    pub arm: Option<String>,
    /// How it ended.
    pub outcome: Result<Box<RawValue>, RowError>,
}

/// What a result line or an error line says of its row.
#[derive(Deserialize)]
struct EarlierLine {
    position: Position,
    route: Option<String>,
    arm: Option<String>,
    result: Option<Box<RawValue>>,
    error: Option<RowError>,
}

/// Stored bytes of a part that are read together, and the lines in them.
#[derive(Debug, PartialEq)]
struct Span {
    part: u32,
    stored: Range<u64>,
    /// Which row each is, and where it stands in the decoded bytes.
    lines: Vec<(usize, Range<usize>)>,
}

impl<'a> Earlier<'a> {
    /// An output that holds answers where the list says.
    pub fn new(output: Location, answers: &'a Answers) -> Self {
        Self { output, answers }
    }

    /// The output that holds the answers of a shard with a list.
    pub async fn open(ctx: &'a ShardContext, index: ShardIndex) -> Result<Self, CarriedError> {
        let shard = &ctx.plan.shards[index as usize];
        if let (false, Some(carried)) = (shard.is_of_duplicates(), &ctx.plan.carried) {
            let output = ctx.stores.open(&carried.difference.from)?;
            let answers = &carried.answers;
            return Ok(Self { output, answers });
        }
        let output = ctx.output.clone();
        let answers = &copies(ctx).await?.answers;
        Ok(Self { output, answers })
    }

    /// The answers of `rows`, in no order, each with the index of its row.
    pub async fn answers(
        &self,
        rows: &[(usize, CarriedRow)],
    ) -> Result<Vec<(usize, EarlierRow)>, CarriedError> {
        let read = |span: Span| async move { self.read(span).await };
        let is_zstd = |part| self.path(part).ends_with(".zst");
        let results: Vec<Vec<_>> = futures::stream::iter(spans(rows, is_zstd))
            .map(read)
            .buffer_unordered(SPANS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(results.into_iter().flatten().collect())
    }

    /// The path of a part below the output.
    fn path(&self, part: u32) -> &str {
        let part = self.answers.parts.get(part as usize);
        part.map_or("", String::as_str)
    }

    async fn read(&self, span: Span) -> Result<Vec<(usize, EarlierRow)>, CarriedError> {
        let zstd = self.path(span.part).ends_with(".zst");
        let path = self.output.below(self.path(span.part));
        let stored = match self.output.store.get_range(&path, span.stored).await {
            Ok(stored) => stored,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(CarriedError::Gone(path.to_string()));
            }
            Err(source) => return Err(StoreError::at(&path, source).into()),
        };
        let unreadable = |source| CarriedError::Unreadable {
            path: path.to_string(),
            source,
        };
        let end = span.lines.iter().map(|(_, line)| line.end).max();
        let reading = move || {
            let decoded = match zstd {
                true => decoded(&stored, end.unwrap_or(0))?,
                false => stored,
            };
            let lines = span.lines.into_iter().map(|(row, line)| {
                let line = decoded.get(line).ok_or("it is too short")?;
                let line: EarlierLine = serde_json::from_slice(line)?;
                let EarlierLine {
                    position,
                    route,
                    arm,
                    result,
                    error,
                } = line;
                let outcome = match (result, error) {
                    (Some(result), _) => Ok(result),
                    (None, Some(error)) => Err(error),
                    (None, None) => return Err("a line has neither result nor error".into()),
                };
                let earlier = EarlierRow {
                    position,
                    route,
                    arm,
                    outcome,
                };
                Ok((row, earlier))
            });
            lines.collect::<Result<_, _>>()
        };
        let read = tokio::task::spawn_blocking(reading).await;
        read.expect("reading does not panic").map_err(unreadable)
    }
}

/// The first `end` bytes of a frame: a frame never makes more of itself than the plan says.
fn decoded(frame: &[u8], end: usize) -> std::io::Result<Bytes> {
    let mut decoded = Vec::with_capacity(end);
    let decoder = zstd::Decoder::new(frame)?;
    decoder.take(end as u64).read_to_end(&mut decoded)?;
    Ok(decoded.into())
}

/// What is to be read for some rows: frames whole where their part is compressed, else lines, those
/// close to each other together.
fn spans(rows: &[(usize, CarriedRow)], is_zstd: impl Fn(u32) -> bool) -> Vec<Span> {
    let mut rows = rows.to_vec();
    rows.sort_unstable_by_key(|(_, row)| (row.part, row.line.frame_start, row.line.offset));
    let mut spans: Vec<Span> = Vec::new();
    for (index, CarriedRow { part, line, .. }) in rows {
        let zstd = is_zstd(part);
        let (offset, bytes) = (line.offset as usize, line.bytes as usize);
        let (start, length) = match zstd {
            true => (line.frame_start, u64::from(line.frame_bytes)),
            false => (
                line.frame_start + u64::from(line.offset),
                u64::from(line.bytes),
            ),
        };
        let stored = start..start + length;
        // Within a part, what comes later starts later.
        let is_near = |last: &Span| match zstd {
            true => last.stored == stored,
            false => {
                stored.start <= last.stored.end + GAP_BYTES_MAX
                    && stored.end - last.stored.start <= SPAN_BYTES_MAX
            }
        };
        let joins = |last: &&mut Span| last.part == part && is_near(last);
        match spans.last_mut().filter(joins) {
            Some(last) => {
                last.stored.end = last.stored.end.max(stored.end);
                let start = match zstd {
                    true => offset,
                    false => (stored.start - last.stored.start) as usize,
                };
                last.lines.push((index, start..start + bytes));
            }
            None => {
                let start = if zstd { offset } else { 0 };
                spans.push(Span {
                    part,
                    stored,
                    lines: vec![(index, start..start + bytes)],
                });
            }
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ledger::LineAt;
    use millrace_protocol::row::Place;

    use super::*;

    fn row(part: u32, frame_start: u64, offset: u32) -> CarriedRow {
        CarriedRow {
            place: Place::Offset { offset: 0 },
            part,
            line: LineAt {
                frame_start,
                frame_bytes: 500,
                offset,
                bytes: 10,
            },
        }
    }

    #[test]
    fn lines_close_to_each_other_are_read_together() {
        let far = (GAP_BYTES_MAX + 100) as u32;
        let rows = [
            (0, row(0, 1_000, 20)),
            (1, row(0, 1_000, 0)),
            (2, row(0, 1_000, far)),
            (3, row(1, 0, 0)),
        ];
        let span = |part, stored, lines| Span {
            part,
            stored,
            lines,
        };
        let far = 1_000 + u64::from(far);
        assert_eq!(
            spans(&rows, |_| false),
            [
                span(0, 1_000..1_030, vec![(1, 0..10), (0, 20..30)]),
                span(0, far..far + 10, vec![(2, 0..10)]),
                span(1, 0..10, vec![(3, 0..10)]),
            ]
        );
    }

    #[test]
    fn a_frame_is_read_once_for_all_its_lines() {
        let rows = [(0, row(0, 0, 20)), (1, row(0, 500, 0)), (2, row(0, 0, 40))];
        let spans = spans(&rows, |_| true);
        let read: Vec<_> = spans.iter().map(|span| span.stored.clone()).collect();
        assert_eq!(read, [0..500, 500..1_000]);
        assert_eq!(spans[0].lines, [(0, 20..30), (2, 40..50)]);
    }
}
