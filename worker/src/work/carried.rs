//! The rows of a shard whose answers stand in an earlier output: an incremental run copies these and
//! asks about the others.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use millrace_protocol::layout;
use millrace_protocol::ledger::CarriedRow;
use millrace_protocol::plan::{Carried, Plan, ShardIndex};
use millrace_protocol::row::ReadRow;
use object_store::ObjectStoreExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::ShardContext;
use crate::job;
use crate::records::{self, RecordsError};
use crate::store::{Location, StoreError};

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

/// The rows of a shard that are carried over, in the shard's order.
pub struct CarriedRows {
    list: BoxStream<'static, Result<Vec<[u8; CarriedRow::BYTES]>, StoreError>>,
    read: VecDeque<CarriedRow>,
}

impl CarriedRows {
    /// Opens the list of a shard; `None` where nothing is carried over, or where other models stand
    /// ready now than those that gave the answers.
    pub async fn open(ctx: &ShardContext, index: ShardIndex) -> Result<Option<Self>, CarriedError> {
        let Plan { carried, .. } = &ctx.plan;
        let shard = &ctx.plan.shards[index as usize];
        let Some(carried) = carried.as_ref().filter(|_| shard.carried > 0) else {
            return Ok(None);
        };
        let asked = match &ctx.job.routing {
            None => job::models(&ctx.job.steps),
            Some(_) => ctx.models.keys().cloned().collect(),
        };
        let is_same = |model: &String| carried.models.get(model) == ctx.models.get(model);
        if !asked.iter().all(is_same) {
            tracing::warn!(
                shard = index,
                "other models made the earlier output: every row is asked anew"
            );
            return Ok(None);
        }
        let list = layout::carried(ctx.plan.run, &carried.planner, index);
        match records::read(&ctx.output, &list).await {
            Ok(list) => Ok(Some(Self {
                list: list.boxed(),
                read: VecDeque::new(),
            })),
            Err(RecordsError::NotFound(path)) => Err(CarriedError::Gone(path)),
            Err(RecordsError::Store(error)) => Err(error.into()),
        }
    }

    /// Those among `rows`, by their index. `rows` follow those of the call before.
    pub async fn among(
        &mut self,
        rows: &[ReadRow],
    ) -> Result<Vec<(usize, CarriedRow)>, CarriedError> {
        let mut found = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            while let Some(carried) = self.next().await? {
                if carried.place > row.place() {
                    break;
                }
                // One that stands before it is not asked about any more, so it is not missed.
                self.read.pop_front();
                if carried.place == row.place() {
                    found.push((index, carried));
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The next row of the list, which stays there.
    async fn next(&mut self) -> Result<Option<CarriedRow>, CarriedError> {
        while self.read.is_empty() {
            let Some(rows) = self.list.try_next().await? else {
                return Ok(None);
            };
            self.read.extend(rows.iter().map(CarriedRow::from_bytes));
        }
        Ok(self.read.front().copied())
    }
}

/// The earlier output.
pub struct Earlier<'a> {
    output: Location,
    carried: &'a Carried,
}

/// What a result line says of its row.
#[derive(Debug, Deserialize)]
pub struct EarlierLine {
    /// The results.
    pub result: Box<RawValue>,
    /// The route that answered, if the job has routes.
    pub route: Option<String>,
    /// Its arm, if it has arms.
    pub arm: Option<String>,
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
    /// The output that the plan names.
    pub fn open(ctx: &'a ShardContext) -> Result<Option<Self>, CarriedError> {
        let Some(carried) = &ctx.plan.carried else {
            return Ok(None);
        };
        let output = ctx.stores.open(&carried.difference.from)?;
        Ok(Some(Self { output, carried }))
    }

    /// The lines of `rows`, in no order, each with the index of its row.
    pub async fn results(
        &self,
        rows: &[(usize, CarriedRow)],
    ) -> Result<Vec<(usize, EarlierLine)>, CarriedError> {
        let read = |span: Span| async move { self.read(span).await };
        let results: Vec<Vec<_>> = futures::stream::iter(spans(rows, self.carried.zstd))
            .map(read)
            .buffer_unordered(SPANS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(results.into_iter().flatten().collect())
    }

    async fn read(&self, span: Span) -> Result<Vec<(usize, EarlierLine)>, CarriedError> {
        let part = self.carried.parts.get(span.part as usize);
        let path = self.output.below(part.map_or("", String::as_str));
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
        let zstd = self.carried.zstd;
        let reading = move || {
            let decoded = match zstd {
                true => decoded(&stored, end.unwrap_or(0))?,
                false => stored,
            };
            let lines = span.lines.into_iter().map(|(row, line)| {
                let line = decoded.get(line).ok_or("it is too short")?;
                Ok((row, serde_json::from_slice(line)?))
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

/// What is to be read for some rows: frames whole where they are compressed, else lines, those close
/// to each other together.
fn spans(rows: &[(usize, CarriedRow)], zstd: bool) -> Vec<Span> {
    let mut rows = rows.to_vec();
    rows.sort_unstable_by_key(|(_, row)| (row.part, row.line.frame_start, row.line.offset));
    let mut spans: Vec<Span> = Vec::new();
    for (index, CarriedRow { part, line, .. }) in rows {
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
            spans(&rows, false),
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
        let spans = spans(&rows, true);
        let read: Vec<_> = spans.iter().map(|span| span.stored.clone()).collect();
        assert_eq!(read, [0..500, 500..1_000]);
        assert_eq!(spans[0].lines, [(0, 20..30), (2, 40..50)]);
    }
}
