//! Plans what an incremental run carries over: rows whose content an earlier output answered.
//!
//! The rows of the input and the ledgers of the earlier output are spread by content over temporary
//! files, which are then compared one by one: memory holds a file of each, whatever the size of the
//! data. What is carried over is listed for each shard, in the shard's order.

mod join;
mod spill;

use std::io;

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::layout;
use millrace_protocol::ledger::{CarriedRow, ContentHash, LedgerEntry, LineAt};
use millrace_protocol::manifest::{LivePart, Manifest};
use millrace_protocol::plan::{Carried, Difference, Plan, ShardIndex};
use millrace_protocol::row::Place;

use self::join::{ANSWER_BYTES, Counts, PLACED_BYTES, ROW_BYTES};
use self::spill::{Records, Spill};
use super::PlanError;
use crate::content::content;
use crate::filter::Verdict;
use crate::finish;
use crate::job::{CheckedJob, Fields};
use crate::read::{self, view::RowView};
use crate::store::{self, Location, Stores};

/// Rows that are compared at a time, about: a hundred megabytes.
const ROWS_PER_FILE: u64 = 500_000;
/// Most temporary files of a kind, all of them open.
const FILES_MAX: u64 = 128;
/// Least bytes that a row takes on average, for a guess at their number.
const ROW_BYTES_GUESS: u64 = 100;
/// Ledgers read at a time.
const LEDGERS_AT_ONCE: usize = 4;

/// Finds the rows of `plan` that the output `from` answered, and lists them below the job's output.
/// Leaves the plan as it is where another model, prompt or parameter gave those answers.
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
    let input_bytes: u64 = plan.inputs.iter().map(|input| input.size_bytes).sum();
    let rows = (manifest.totals.rows.succeeded).max(input_bytes / ROW_BYTES_GUESS);
    let files = rows.div_ceil(ROWS_PER_FILE).clamp(1, FILES_MAX) as usize;
    let Some(last) = manifest.parts.iter().max_by_key(|part| part.run) else {
        return Ok(());
    };
    let models = last.commit.models.clone();
    let of_these = |part: &&LivePart| part.commit.models == models;
    let parts: Vec<&LivePart> = manifest.parts.iter().filter(of_these).collect();
    let answers = spill_answers(&earlier, &parts, files).await?;
    let rows = spill_rows(stores, job, plan, files).await?;
    let (unchanged, counts) = compare(answers, rows, plan.shards.len(), files)?;
    let planner = format!("{:016x}", rand::random::<u64>());
    let output = stores.open(&job.output.uri)?;
    for records in unchanged.into_files() {
        list(&output, plan, &planner, &records.map_err(PlanError::Spill)?).await?;
    }
    plan.carried = Some(carried(from, &manifest, &parts, planner, models, counts));
    Ok(())
}

fn carried(
    from: &str,
    manifest: &Manifest,
    parts: &[&LivePart],
    planner: String,
    models: std::collections::BTreeMap<String, String>,
    counts: Counts,
) -> Carried {
    let Counts {
        unchanged,
        fresh,
        gone,
    } = counts;
    let paths = parts.iter().map(|part| part.commit.part.clone());
    Carried {
        difference: Difference {
            from: from.to_owned(),
            unchanged,
            fresh,
            gone,
        },
        planner,
        parts: paths.map(Option::unwrap_or_default).collect(),
        zstd: manifest.parts.iter().any(is_zstd),
        models,
    }
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
            let path = earlier.below(&ledger);
            let entries = store::read(&earlier.store, &path).await?;
            let entries = entries.ok_or_else(|| PlanError::NoLedger(path.to_string()))?;
            Ok::<_, PlanError>((part, entries))
        })
        .buffer_unordered(LEDGERS_AT_ONCE);
    while let Some((part, entries)) = ledgers.try_next().await? {
        let (entries, _) = entries.as_chunks();
        for entry in entries.iter().map(LedgerEntry::from_bytes) {
            let file = file_of(&entry.content, files);
            let answer = join::answer_bytes(entry, part);
            answers.put(file, &answer).map_err(PlanError::Spill)?;
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
    let stores = &stores.with_inline_rows(&job.input);
    let fields = Fields {
        join: Vec::new(),
        ..job.input.fields.clone()
    };
    let mut rows = Spill::new(files).map_err(PlanError::Spill)?;
    for (index, shard) in (0..).zip(&plan.shards) {
        let input = plan.input_of(shard);
        let mut spilled = Ok(());
        let opened = read::open_shard(stores, input, shard, &fields, job.input.row_bytes_max);
        opened
            .await?
            .visit(|place, _, row| {
                // A bad row is not asked about, and neither is one that is left out.
                let is_kept = |row: &RowView<'_>| {
                    let filter = job.input.filter.as_ref();
                    filter.is_none_or(|filter| row.verdict(filter) == Verdict::Keep)
                };
                if let (Ok(()), Ok(row)) = (&spilled, &row)
                    && is_kept(row)
                {
                    let content = content(row.asked());
                    let row = join::row_bytes(content, index, unanswered(place));
                    spilled = rows.put(file_of(&content, files), &row);
                }
            })
            .await?;
        spilled.map_err(PlanError::Spill)?;
    }
    Ok(rows)
}

/// A row of which nothing but its place is known.
fn unanswered(place: Place) -> CarriedRow {
    CarriedRow {
        place,
        part: 0,
        line: LineAt::default(),
    }
}

/// Which file a content belongs to.
fn file_of(content: &ContentHash, files: usize) -> usize {
    usize::from(content[0]) * files / 256
}

/// Compares rows and answers file by file. The unchanged rows come in files by shard.
fn compare(
    answers: Spill<ANSWER_BYTES>,
    rows: Spill<ROW_BYTES>,
    shards: usize,
    files: usize,
) -> Result<(Spill<PLACED_BYTES>, Counts), PlanError> {
    let compared = || -> io::Result<_> {
        let mut unchanged = Spill::new(files)?;
        let mut sum = Counts::default();
        for (answers, rows) in answers.into_files().zip(rows.into_files()) {
            let counts = join::join(answers?.iter(), rows?.iter(), |shard, row| {
                let file = shard as usize * files / shards;
                unchanged.put(file, &join::placed_bytes(shard, row))
            })?;
            sum.unchanged += counts.unchanged;
            sum.fresh += counts.fresh;
            sum.gone += counts.gone;
        }
        Ok((unchanged, sum))
    };
    compared().map_err(PlanError::Spill)
}

/// Writes the lists of some shards, and counts them in the plan.
async fn list(
    output: &Location,
    plan: &mut Plan,
    planner: &str,
    records: &Records<PLACED_BYTES>,
) -> Result<(), PlanError> {
    let mut rows: Vec<(ShardIndex, CarriedRow)> = records.iter().map(join::placed).collect();
    rows.sort_unstable_by_key(|(shard, row)| (*shard, row.place));
    for of_shard in rows.chunk_by(|(one, _), (other, _)| one == other) {
        let (shard, _) = of_shard[0];
        let list: Vec<u8> = of_shard
            .iter()
            .flat_map(|(_, row)| row.to_bytes())
            .collect();
        let path = output.below(&layout::carried(plan.run, planner, shard));
        store::replace(&output.store, &path, list).await?;
        plan.shards[shard as usize].carried = of_shard.len() as u64;
    }
    Ok(())
}
