//! Plans a run that runs again what failed in the run before it: from that run's manifest alone,
//! without a look at the input.

use std::collections::HashMap;

use millrace_protocol::manifest::{LivePart, Manifest};
use millrace_protocol::plan::{Plan, RunNumber, Shard, ShardOfRun, SpecField};

use super::PlanError;
use crate::job::CheckedJob;

/// One shard for each live part with failed rows, and one for each range that was given up whole.
pub(super) fn draft(
    job: &CheckedJob,
    run: RunNumber,
    earlier: Option<&Manifest>,
    spec_before: &[SpecField],
) -> Result<Plan, PlanError> {
    let earlier = earlier.filter(|manifest| manifest.run + 1 == run);
    let earlier = earlier.ok_or_else(|| PlanError::NoEarlierRun {
        run,
        output: job.output.uri.clone(),
    })?;
    if earlier.spec_sha256 != job.spec_sha256 {
        return Err(PlanError::other_spec(
            job,
            &earlier.spec_sha256,
            spec_before,
        ));
    }
    let given_up: Vec<Shard> = (earlier.failed_shards.iter())
        .map(|failed| Shard {
            carried: 0,
            taken_up: Some(failed.range.receipts(earlier.run, failed.shard)),
            ..failed.range
        })
        .collect();
    // Of a shard that ran failed rows again the rows' earlier errors are live still: it is among
    // the parts.
    let ran_again = given_up
        .iter()
        .filter_map(|range| Some((range.failed_in?, range.taken_up)));
    let ran_again: HashMap<ShardOfRun, Option<ShardOfRun>> = ran_again.collect();
    let failed_rows = earlier.parts.iter().filter_map(|part| {
        let shard = with_failed_rows(part)?;
        let taken_up = shard.failed_in.and_then(|of| *ran_again.get(&of)?);
        Some(Shard { taken_up, ..shard })
    });
    let given_up = given_up
        .iter()
        .copied()
        .filter(|range| range.failed_in.is_none());
    let mut shards: Vec<Shard> = failed_rows.chain(given_up).collect();
    // Duplicates get what the others end as.
    shards.sort_by_key(|shard| (shard.is_of_duplicates(), shard.class, shard.place()));
    Ok(Plan {
        version: Plan::VERSION,
        run,
        spec_sha256: job.spec_sha256.clone(),
        answers_sha256: job.answers_sha256.clone(),
        spec: job.spec_fields.clone(),
        incremental_from: None,
        carried: None,
        dedup: earlier.dedup.clone(),
        inputs: earlier.inputs.clone(),
        shards,
        order: earlier.order.clone(),
    })
}

fn with_failed_rows(part: &LivePart) -> Option<Shard> {
    let LivePart { run, range, commit } = part;
    commit.errors.as_ref()?;
    Some(Shard {
        failed_in: Some(ShardOfRun {
            run: *run,
            shard: commit.shard,
        }),
        carried: 0,
        taken_up: None,
        ..*range
    })
}
