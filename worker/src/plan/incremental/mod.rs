//! Plans what an incremental run carries over: rows whose content an earlier output answered.
//!
//! The rows of the input and the ledgers of the earlier output are spread by content over temporary
//! files, which are then compared one by one: memory holds the answers of one file. What is carried
//! over is listed for each shard, in the shard's order.

mod join;
mod lists;
mod rows;
mod spill;

use std::collections::BTreeMap;
use std::io;

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::ledger::{CarriedRow, ContentHash, LedgerEntry, LineAt};
use millrace_protocol::manifest::{LivePart, Manifest};
use millrace_protocol::plan::{Carried, Difference, Plan};

use self::join::{ANSWER_BYTES, Counts, PLACED_BYTES, ROW_BYTES};
use self::rows::{Contents, Reader};
use self::spill::Spill;
use super::PlanError;
use crate::finish;
use crate::job::CheckedJob;
use crate::records::{self, RecordsError};
use crate::store::{Location, Stores};

/// Answers that are held at a time, about: some fifty megabytes.
const ANSWERS_PER_FILE: u64 = 500_000;
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
    let answers = manifest.totals.rows.succeeded;
    let files = answers.div_ceil(ANSWERS_PER_FILE).clamp(1, FILES_MAX) as usize;
    let answers = spill_answers(&earlier, &parts, files).await?;
    let rows = spill_rows(stores, job, plan, files).await?;
    let compared = tokio::task::spawn_blocking(move || compare(answers, rows, files));
    let compared = compared.await.expect("comparing does not panic");
    let (unchanged, counts) = compared.map_err(PlanError::Spill)?;
    let planner = format!("{:016x}", rand::random::<u64>());
    let output = stores.open(&job.output.uri)?;
    lists::write(&output, plan, &planner, unchanged).await?;
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
        planner,
        parts: paths.map(Option::unwrap_or_default).collect(),
        zstd: parts.iter().any(|part| is_zstd(part)),
        models,
    });
    Ok(())
}

/// The models that the earlier output was made by last, and the parts that are theirs: what other
/// models said is not carried over.
fn of_last_models(manifest: &Manifest) -> (BTreeMap<String, String>, Vec<&LivePart>) {
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

fn is_zstd(part: &LivePart) -> bool {
    let path = part.commit.part.as_deref();
    path.is_some_and(|path| path.ends_with(".zst"))
}

/// Reads the ledgers of the earlier output.
async fn spill_answers(
    earlier: &Location,
    parts: &[&LivePart],
    files: usize,
) -> Result<Spill<ANSWER_BYTES>, PlanError> {
    let mut answers = Spill::new(files).map_err(PlanError::Spill)?;
    let named = (0..).zip(parts);
    let named = named.filter_map(|(part, live)| Some((part, live.commit.ledger.clone()?)));
    let mut ledgers = futures::stream::iter(named)
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
    Ok(answers)
}

/// Reads every row of the input.
async fn spill_rows(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
    files: usize,
) -> Result<Spill<ROW_BYTES>, PlanError> {
    let mut spill = Spill::new(files).map_err(PlanError::Spill)?;
    let take = |shard, rows: Contents| {
        for (content, place) in rows {
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
    Reader::new(stores, job).read(plan, take).await?;
    Ok(spill)
}

/// Which file a content belongs to.
fn file_of(content: &ContentHash, files: usize) -> usize {
    usize::from(content[0]) * files / 256
}

/// Compares rows and answers file by file. The unchanged rows of a file keep their order.
fn compare(
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
