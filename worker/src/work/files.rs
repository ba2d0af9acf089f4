//! The files of an attempt at a shard: its part, its errors, and ledgers of both.

use std::ops::Range;

use millrace_protocol::layout;
use millrace_protocol::ledger::{ContentHash, LedgerEntry, LineAt};
use millrace_protocol::plan::ShardIndex;

use super::ShardContext;
use super::lines::Lines;
use super::part::{PartWriter, WrittenPart};
use crate::store::StoreError;

/// The files that are being written.
pub struct Files {
    part: PartWriter,
    errors: PartWriter,
    ledger: PartWriter,
    /// Duplicates find errors by it; without any it is of no use.
    error_ledger: Option<PartWriter>,
}

/// The files that were written; those that would be empty are not there.
pub struct WrittenFiles {
    /// The results.
    pub part: Option<WrittenPart>,
    /// The errors.
    pub errors: Option<WrittenPart>,
    /// The ledger of the results.
    pub ledger: Option<WrittenPart>,
    /// The ledger of the errors.
    pub error_ledger: Option<WrittenPart>,
}

impl Files {
    /// The files of an attempt; nothing is stored yet.
    pub fn new(ctx: &ShardContext, shard: ShardIndex, attempt: &str) -> Self {
        let (run, zstd) = (ctx.plan.run, ctx.job.output.zstd);
        let file = |path| PartWriter::new(&ctx.output, path);
        let has_duplicates = ctx.plan.dedup.is_some();
        Self {
            part: file(layout::part(run, shard, attempt, zstd)),
            errors: file(layout::errors(run, shard, attempt)),
            ledger: file(layout::ledger(run, shard, attempt)),
            error_ledger: has_duplicates.then(|| file(layout::error_ledger(run, shard, attempt))),
        }
    }

    /// Appends lines, each file's as one frame.
    pub async fn write(&mut self, lines: Lines) -> Result<(), StoreError> {
        let Lines {
            results,
            errors,
            rows: _,
            arms: _,
            answered,
            refused,
        } = lines;
        let answered = entries(self.part.stored_bytes(), results.len(), answered);
        self.part.write(results.into()).await?;
        self.ledger.write(answered.into()).await?;
        if let Some(ledger) = &mut self.error_ledger {
            let refused = entries(self.errors.stored_bytes(), errors.len(), refused);
            ledger.write(refused.into()).await?;
        }
        self.errors.write(errors.into()).await
    }

    /// Ends the files.
    pub async fn finish(self) -> Result<WrittenFiles, StoreError> {
        let Self {
            part,
            errors,
            ledger,
            error_ledger,
        } = self;
        Ok(WrittenFiles {
            part: part.finish().await?,
            errors: errors.finish().await?,
            ledger: ledger.finish().await?,
            error_ledger: match error_ledger {
                Some(ledger) => ledger.finish().await?,
                None => None,
            },
        })
    }
}

/// The ledger entries of the rows of a frame.
fn entries(
    frame_start: u64,
    frame_bytes: usize,
    rows: Vec<(ContentHash, Range<usize>)>,
) -> Vec<u8> {
    let short = |bytes: usize| u32::try_from(bytes).expect("a frame is far shorter than 4 GiB");
    let entry = |(content, line): (ContentHash, Range<usize>)| LedgerEntry {
        content,
        line: LineAt {
            frame_start,
            frame_bytes: short(frame_bytes),
            offset: short(line.start),
            bytes: short(line.len()),
        },
    };
    let entries = rows.into_iter().map(entry);
    entries.flat_map(LedgerEntry::to_bytes).collect()
}
