//! Compares a plan's rows with answers that are there, by content: what incremental runs and duplicates are
//! planned by.
//!
//! Both are spread by content over temporary files, which are then compared one by one: memory holds the
//! answers of one file, which grow with the rows once there are as many files as there may be. What is found
//! is listed for each shard, in the shard's order.

pub(super) mod join;
pub(super) mod lists;
pub(super) mod rows;
pub(super) mod spill;

use std::io;

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::ledger::{ContentHash, LedgerEntry};

use self::join::{ANSWER_BYTES, Counts, PLACED_BYTES, ROW_BYTES};
use self::spill::Spill;
use super::PlanError;
use crate::records::{self, RecordsError};
use crate::store::Location;

/// Answers, or contents of rows, that are held at a time, about: some fifty megabytes.
const RECORDS_PER_FILE: u64 = 500_000;
/// Most temporary files of a kind, all of them open. More than 64 million records make larger ones of them.
const FILES_MAX: u64 = 128;
/// Ledgers that are read at a time.
const LEDGERS_AT_ONCE: usize = 4;

/// How many temporary files of a kind hold so many answers or rows.
pub(super) fn files_for(records: u64) -> usize {
    records.div_ceil(RECORDS_PER_FILE).clamp(1, FILES_MAX) as usize
}

/// Reads ledgers of an output, each given with the index of its part.
pub(super) async fn spill_answers(
    earlier: &Location,
    ledgers: impl Iterator<Item = (u32, String)>,
    files: usize,
    answers: &mut Spill<ANSWER_BYTES>,
) -> Result<(), PlanError> {
    let mut ledgers = futures::stream::iter(ledgers)
        .map(|(part, ledger)| async move {
            match records::read::<{ LedgerEntry::BYTES }>(earlier, &ledger).await {
                Ok(entries) => Ok(entries.map_ok(move |entries| (part, entries))),
                Err(RecordsError::NotFound(path)) => Err(PlanError::NoLedger(path)),
                Err(RecordsError::Store(error)) => Err(error.into()),
            }
        })
        .buffer_unordered(LEDGERS_AT_ONCE);
    while let Some(mut ledger) = ledgers.try_next().await? {
        while let Some((part, entries)) = ledger.try_next().await? {
            for entry in &entries {
                let LedgerEntry { content, .. } = LedgerEntry::from_bytes(entry);
                let answer = join::answer_bytes(entry, part);
                let put = answers.put(file_of(&content, files), &answer);
                put.map_err(PlanError::Spill)?;
            }
        }
    }
    Ok(())
}

/// Which file a content belongs to.
pub(super) fn file_of(content: &ContentHash, files: usize) -> usize {
    usize::from(content[0]) * files / 256
}

/// Compares rows and answers file by file. The rows of a file with an answer keep their order.
pub(super) async fn compare(
    answers: Spill<ANSWER_BYTES>,
    rows: Spill<ROW_BYTES>,
    files: usize,
) -> Result<(Spill<PLACED_BYTES>, Counts), PlanError> {
    let compared = tokio::task::spawn_blocking(move || compare_files(answers, rows, files)).await;
    let compared = compared.expect("comparing does not panic");
    compared.map_err(PlanError::Spill)
}

fn compare_files(
    answers: Spill<ANSWER_BYTES>,
    rows: Spill<ROW_BYTES>,
    files: usize,
) -> io::Result<(Spill<PLACED_BYTES>, Counts)> {
    let mut unchanged = Spill::new(files)?;
    let mut sum = Counts::default();
    let both = answers.into_files()?.into_iter().zip(rows.into_files()?);
    for (file, (answers, rows)) in both.enumerate() {
        let counts = join::join(answers, rows, |shard, row| {
            unchanged.put(file, &join::placed_bytes(shard, row))
        })?;
        sum.unchanged += counts.unchanged;
        sum.fresh += counts.fresh;
        sum.gone += counts.gone;
    }
    Ok((unchanged, sum))
}
