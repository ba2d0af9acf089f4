//! Finds out what the duplicates of a run get, once all rows that are asked have ended: their contents
//! are looked up in the ledgers of results and of errors, by the same join that an incremental run is
//! planned by. What is found is listed for each shard of duplicates.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use millrace_protocol::layout;
use millrace_protocol::ledger::{CarriedRow, DuplicateRow, LineAt};
use millrace_protocol::manifest::LivePart;
use millrace_protocol::plan::{Answers, Copies, Dedup, Duplicates, FIRST_RUN, Plan, ShardIndex};

use super::PlanError;
use super::compare::join::{self, ROW_BYTES};
use super::compare::spill::Spill;
use super::compare::{compare, file_of, files_for, lists, spill_answers};
use crate::records::{self, RecordsError};
use crate::store::{self, Location};

/// Lists for these `shards` of duplicates what their rows get, and writes `copies.json`. `live` are the
/// parts of all runs so far. A row of which nothing is found, since the shard of the one that it is like
/// was given up, is asked itself. Whoever does so twice finds the same.
pub(crate) async fn find(
    output: &Location,
    plan: &Plan,
    live: &[LivePart],
    shards: &[ShardIndex],
) -> Result<(), PlanError> {
    // What was copied is no answer of its own, and an error among it may be older than the row's.
    let asked = || live.iter().filter(|part| !part.range.is_of_duplicates());
    let results =
        asked().filter_map(|part| part.commit.part.clone().zip(part.commit.ledger.clone()));
    let errors = asked().filter_map(|part| {
        let commit = &part.commit;
        commit.errors.clone().zip(commit.error_ledger.clone())
    });
    let results_count = results.clone().count();
    let (parts, ledgers): (Vec<String>, Vec<String>) = results.chain(errors).unzip();
    let ledgers: Vec<(u32, String)> = (0..).zip(ledgers).collect();
    let (results, errors) = ledgers.split_at(results_count);
    let rows = asked().map(|part| part.commit.rows.total()).sum();
    let files = files_for(rows);
    let mut answers = Spill::new(files).map_err(PlanError::Spill)?;
    // The first is what counts: a row that failed once and has a result now is found with this.
    for ledgers in [results, errors] {
        let ledgers = ledgers.iter().cloned();
        spill_answers(output, ledgers, files, &mut answers).await?;
    }
    let rows = spill_duplicates(output, plan, shards, files).await?;
    let (found, _) = compare(answers, rows, files).await?;
    let planner = format!("{:016x}", rand::random::<u64>());
    let list = |shard| layout::carried(plan.run, &planner, shard);
    let rows: BTreeMap<ShardIndex, u64> = lists::write(output, found, list)
        .await?
        .into_iter()
        .collect();
    let answers = Answers { planner, parts };
    let copies = serde_json::to_vec(&Copies { answers, rows }).expect("copies are plain data");
    let path = output.below(&layout::copies(plan.run));
    store::replace(&output.store, &path, copies).await?;
    Ok(())
}

/// Reads the lists of duplicates.
async fn spill_duplicates(
    output: &Location,
    plan: &Plan,
    shards: &[ShardIndex],
    files: usize,
) -> Result<Spill<ROW_BYTES>, PlanError> {
    let mut spill = Spill::new(files).map_err(PlanError::Spill)?;
    let Some(Dedup { planner, .. }) = &plan.dedup else {
        return Ok(spill);
    };
    for &shard in shards {
        let Some(Duplicates::Only(list)) = plan.shards[shard as usize].duplicates else {
            continue;
        };
        let list = layout::duplicates(FIRST_RUN, planner, list);
        let mut rows = match records::read::<{ DuplicateRow::BYTES }>(output, &list).await {
            Ok(rows) => rows,
            Err(RecordsError::NotFound(path)) => return Err(PlanError::NoList(path)),
            Err(RecordsError::Store(error)) => return Err(error.into()),
        };
        while let Some(rows) = rows.try_next().await? {
            for row in rows.iter().map(DuplicateRow::from_bytes) {
                let placed = CarriedRow {
                    place: row.place,
                    part: 0,
                    line: LineAt::default(),
                };
                let record = join::row_bytes(row.content, shard, placed);
                let put = spill.put(file_of(&row.content, files), &record);
                put.map_err(PlanError::Spill)?;
            }
        }
    }
    Ok(spill)
}
