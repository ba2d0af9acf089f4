//! Plans what an incremental run carries over: rows whose content an earlier output answered.
//!
//! The rows of the input and the ledgers of the earlier output are spread by content over temporary
//! files, which are then compared one by one: memory holds the answers of one file. What is carried
//! over is listed for each shard, in the shard's order.

pub(super) mod join;
pub(super) mod lists;
pub(super) mod rows;
pub(super) mod spill;

use std::collections::BTreeMap;
use std::io;

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::layout;
use millrace_protocol::ledger::{CarriedRow, ContentHash, LedgerEntry, LineAt};
use millrace_protocol::manifest::{LivePart, Manifest};
use millrace_protocol::plan::{Answers, Carried, Difference, Plan};

use self::join::{ANSWER_BYTES, Counts, PLACED_BYTES, ROW_BYTES};
use self::rows::{Contents, RowReader};
use self::spill::Spill;
use super::PlanError;
use crate::finish;
use crate::job::CheckedJob;
use crate::records::{self, RecordsError};
use crate::store::{Location, Stores};

/// Answers, or contents of rows, that are held at a time, about: some fifty megabytes.
const RECORDS_PER_FILE: u64 = 500_000;
/// Most temporary files of a kind, all of them open.
const FILES_MAX: u64 = 128;
/// Ledgers that are read at a time.
const LEDGERS_AT_ONCE: usize = 4;

/// Finds the rows of `plan` that the output `from` answered, and lists them below the job's output.
/// Carries nothing over where another model, prompt or parameter gave those answers.
pub(super) async fn carry(
    stores: &Stores,
    job: &CheckedJob,
    from: &str,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    if from == job.output.uri {
        return Err(PlanError::IncrementalFromItself(from.to_owned()));
    }
    let earlier = stores.open(from)?;
    let manifest = finish::read_manifest(&earlier).await;
    let manifest = manifest.map_err(|source| PlanError::EarlierOutput {
        from: from.to_owned(),
        source: Box::new(source),
    })?;
    let manifest = manifest.ok_or_else(|| PlanError::NoEarlierOutput(from.to_owned()))?;
    if manifest.answers_sha256 != job.answers_sha256 {
        tracing::warn!(
            from,
            "another model, prompt or parameter made the earlier output: every row is asked anew"
        );
        return Ok(());
    }
    let (models, parts) = of_last_models(&manifest);
    let files = files_for(manifest.totals.rows.succeeded);
    let ledgers = (0..).zip(&parts);
    let ledgers = ledgers.filter_map(|(part, live)| Some((part, live.commit.ledger.clone()?)));
    let mut answers = Spill::new(files).map_err(PlanError::Spill)?;
    spill_answers(&earlier, ledgers, files, &mut answers).await?;
    let rows = spill_rows(stores, job, plan, files).await?;
    let (unchanged, counts) = compare(answers, rows, files).await?;
    let planner = format!("{:016x}", rand::random::<u64>());
    let output = stores.open(&job.output.uri)?;
    let list = |shard| layout::carried(plan.run, &planner, shard);
    for (shard, rows) in lists::write(&output, unchanged, list).await? {
        plan.shards[shard as usize].carried = rows;
    }
    let Counts {
        unchanged,
        fresh,
        gone,
    } = counts;
    let paths = parts.iter().map(|part| part.commit.part.clone());
    plan.carried = Some(Carried {
        difference: Difference {
            from: from.to_owned(),
            unchanged,
            fresh,
            gone,
        },
        answers: Answers {
            planner,
            parts: paths.map(Option::unwrap_or_default).collect(),
        },
        models,
    });
    Ok(())
}

/// The models that the earlier output was made by last, and the parts that are theirs: what other
/// models said is not carried over.
pub(super) fn of_last_models(manifest: &Manifest) -> (BTreeMap<String, String>, Vec<&LivePart>) {
    let last = manifest.parts.iter().max_by_key(|part| part.run);
    let models = last.map(|part| part.commit.models.clone());
    let models = models.unwrap_or_default();
    let of_these = |part: &&LivePart| part.commit.models == models;
    let parts: Vec<&LivePart> = manifest.parts.iter().filter(of_these).collect();
    if parts.len() < manifest.parts.len() {
        tracing::warn!(
            parts = manifest.parts.len() - parts.len(),
            "parts of the earlier output were made by other models: their rows are asked anew"
        );
    }
    (models, parts)
}

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

/// Reads every row of the input.
async fn spill_rows(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
    files: usize,
) -> Result<Spill<ROW_BYTES>, PlanError> {
    let mut spill = Spill::new(files).map_err(PlanError::Spill)?;
    let take = |shard, rows: Contents<()>| {
        for (content, place, ()) in rows {
            let row = CarriedRow {
                place,
                part: 0,
                line: LineAt::default(),
            };
            let row = join::row_bytes(content, shard, row);
            spill.put(file_of(&content, files), &row)?;
        }
        Ok(())
    };
    RowReader::new(stores, job, |_| ())?
        .read(plan, take)
        .await?;
    Ok(spill)
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
