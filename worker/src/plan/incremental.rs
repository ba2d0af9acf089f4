//! Plans what an incremental run carries over: rows whose content an earlier output answered. What is carried
//! over is listed for each shard.

use std::collections::BTreeMap;

use millrace_protocol::layout;
use millrace_protocol::ledger::{CarriedRow, LineAt};
use millrace_protocol::manifest::{LivePart, Manifest};
use millrace_protocol::plan::{Answers, Carried, Difference, Plan};

use super::PlanError;
use super::compare::join::{self, Counts, PLACED_BYTES, ROW_BYTES};
use super::compare::rows::{Contents, RowReader};
use super::compare::spill::Spill;
use super::compare::{compare, file_of, files_for, lists, spill_answers};
use crate::finish;
use crate::job::CheckedJob;
use crate::store::Stores;

/// The rows of a plan that an earlier output answered.
struct Found {
    /// Each in its shard, the rows of a file in the plan's order.
    unchanged: Spill<PLACED_BYTES>,
    counts: Counts,
    /// Models that gave these answers.
    models: BTreeMap<String, String>,
    /// The earlier output's parts, by which answers are found.
    parts: Vec<String>,
}

/// Finds the rows of `plan` that the output `from` answered, and lists them below the job's output.
/// Carries nothing over where another model, prompt or parameter gave those answers.
pub(super) async fn carry(
    stores: &Stores,
    job: &CheckedJob,
    from: &str,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let Some(found) = find(stores, job, from, plan).await? else {
        return Ok(());
    };
    let Found {
        unchanged,
        counts,
        models,
        parts,
    } = found;
    let planner = format!("{:016x}", rand::random::<u64>());
    let output = stores.open(&job.output.uri)?;
    let list = |shard| layout::carried(plan.run, &planner, shard);
    for (shard, rows) in lists::write(&output, unchanged, list).await? {
        plan.shards[shard as usize].carried = rows;
    }
    plan.carried = Some(Carried {
        difference: difference(from, counts),
        answers: Answers { planner, parts },
        models,
    });
    Ok(())
}

/// How the rows of `plan` differ from those that the earlier output of the job answered; `None` where the
/// job names none, or all rows are asked anew. Writes nothing.
pub async fn count(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
) -> Result<Option<Difference>, PlanError> {
    let Some(from) = &job.incremental_from else {
        return Ok(None);
    };
    let found = find(stores, job, from, plan).await?;
    Ok(found.map(|found| difference(from, found.counts)))
}

fn difference(from: &str, counts: Counts) -> Difference {
    let Counts {
        unchanged,
        fresh,
        gone,
    } = counts;
    Difference {
        from: from.to_owned(),
        unchanged,
        fresh,
        gone,
    }
}

async fn find(
    stores: &Stores,
    job: &CheckedJob,
    from: &str,
    plan: &Plan,
) -> Result<Option<Found>, PlanError> {
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
        return Ok(None);
    }
    let (models, parts) = of_last_models(&manifest);
    let files = files_for(manifest.totals.rows.succeeded);
    let ledgers = (0..).zip(&parts);
    let ledgers = ledgers.filter_map(|(part, live)| Some((part, live.commit.ledger.clone()?)));
    let mut answers = Spill::new(files).map_err(PlanError::Spill)?;
    spill_answers(&earlier, ledgers, files, &mut answers).await?;
    let rows = spill_rows(stores, job, plan, files).await?;
    let (unchanged, counts) = compare(answers, rows, files).await?;
    let paths = parts.iter().map(|part| part.commit.part.clone());
    Ok(Some(Found {
        unchanged,
        counts,
        parts: paths.map(Option::unwrap_or_default).collect(),
        models,
    }))
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
