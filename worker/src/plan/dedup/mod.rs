//! Plans which rows are not asked because an earlier row of the job has the answer.
//!
//! The rows of the input are spread by content over temporary files, which are then read one by one:
//! memory holds the contents of one file. Of rows with equal contents the first one is asked, and the
//! others are its duplicates. What is almost the same is found before that ([`near`]): a content for
//! which there is an earlier one has all its rows among the duplicates.

mod exact;
mod near;
mod signature;

use std::io;

use millrace_crds::batch_job::{Dedup as Wanted, Near};
use millrace_protocol::layout;
use millrace_protocol::ledger::DuplicateRow;
use millrace_protocol::plan::{Dedup, Duplicates, Plan, Shard};

use self::exact::{NEAR_BYTES, ROW_BYTES, duplicates, row_bytes};
use self::near::NearRows;
use self::signature::{Signature, Words};
use super::PlanError;
use super::incremental::rows::{Contents, Reader};
use super::incremental::spill::Spill;
use super::incremental::{file_of, files_for, lists};
use super::preflight::guess_rows;
use crate::job::CheckedJob;
use crate::store::Stores;

/// What was read of the rows of a plan.
struct Read {
    rows: Spill<ROW_BYTES>,
    near: Option<NearRows>,
    files: usize,
}

/// The duplicates among the rows of a plan.
struct Found {
    /// Each in its shard, the rows of a file in the plan's order.
    rows: Spill<ROW_BYTES>,
    count: u64,
}

/// Lists the duplicates among the rows of `plan` below the job's output. Shards leave out theirs, and one
/// shard for each such, after all others, is of these alone.
pub(super) async fn leave_out(
    stores: &Stores,
    job: &CheckedJob,
    wanted: &Wanted,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let Found { rows, count } = find(stores, job, wanted, plan).await?;
    let planner = format!("{:016x}", rand::random::<u64>());
    let output = stores.open(&job.output.uri)?;
    let list = |shard| layout::duplicates(plan.run, &planner, shard);
    for (shard, _) in lists::write(&output, rows, list).await? {
        let range = &mut plan.shards[shard as usize];
        range.duplicates = Some(Duplicates::Without(shard));
        let of_duplicates = Shard {
            duplicates: Some(Duplicates::Only(shard)),
            ..*range
        };
        plan.shards.push(of_duplicates);
    }
    plan.dedup = Some(Dedup {
        duplicates: count,
        planner,
    });
    Ok(())
}

/// How many rows of `plan` are duplicates; `None` where the job does not ask for it. Writes nothing.
pub async fn count(
    stores: &Stores,
    job: &CheckedJob,
    plan: &Plan,
) -> Result<Option<u64>, PlanError> {
    let Some(wanted) = &job.dedup else {
        return Ok(None);
    };
    let Found { rows: _, count } = find(stores, job, wanted, plan).await?;
    Ok(Some(count))
}

async fn find(
    stores: &Stores,
    job: &CheckedJob,
    wanted: &Wanted,
    plan: &Plan,
) -> Result<Found, PlanError> {
    let Wanted { near } = wanted;
    let with_inline = stores.with_inline_rows(&job.input);
    let files = files_for(guess_rows(&with_inline, job, plan).await?);
    let read = read(stores, job, near.as_ref(), plan, files).await?;
    let finding = tokio::task::spawn_blocking(move || find_read(read)).await;
    let found = finding.expect("comparing does not panic");
    found.map_err(PlanError::Spill)
}

/// Reads every row.
async fn read(
    stores: &Stores,
    job: &CheckedJob,
    near: Option<&Near>,
    plan: &Plan,
    files: usize,
) -> Result<Read, PlanError> {
    let mut rows = Spill::new(files).map_err(PlanError::Spill)?;
    let mut near = match near {
        Some(near) => Some(NearRows::new(near, files).map_err(PlanError::Spill)?),
        None => None,
    };
    let words = match (&near, job.input.fields.prompted.is_empty()) {
        (None, _) => None,
        (Some(_), true) => Some(Words::OfText),
        (Some(_), false) => Some(Words::OfFields),
    };
    let sign = move |asked: &str| words.and_then(|words| Signature::of(asked, words));
    let take = |shard, contents: Contents<Option<Signature>>| {
        for (content, place, signature) in contents {
            let row = DuplicateRow {
                place,
                content,
                similarity: None,
            };
            rows.put(file_of(&content, files), &row_bytes(shard, row))?;
            if let (Some(near), Some(signature)) = (&mut near, signature) {
                near.put(&content, &signature)?;
            }
        }
        Ok(())
    };
    Reader::new(stores, job, sign)?.read(plan, take).await?;
    Ok(Read { rows, near, files })
}

fn find_read(read: Read) -> io::Result<Found> {
    let Read { rows, near, files } = read;
    let near: Spill<NEAR_BYTES> = match near {
        Some(near) => near.resolve(|content| file_of(content, files))?,
        None => Spill::new(files)?,
    };
    let mut found = Spill::new(files)?;
    let mut count = 0;
    let both = near.into_files()?.into_iter().zip(rows.into_files()?);
    for (file, (near, rows)) in both.enumerate() {
        count += duplicates(near, rows, |row| found.put(file, &row))?;
    }
    Ok(Found { rows: found, count })
}
