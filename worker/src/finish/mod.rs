//! The last step of a run: verify that commits cover the plan, merge and load if asked, write the
//! manifest.
//!
//! Totals are summed from the commits, never from the lease store; what was paid for rows of shards
//! without a commit is added from their receipts.

mod merge;
mod sweep;

use std::collections::{BTreeMap, HashMap, HashSet};

use millrace_protocol::commit::Commit;
use millrace_protocol::cost::Cost;
use millrace_protocol::layout;
use millrace_protocol::lease::DeadLetter;
use millrace_protocol::manifest::{FailedShard, LivePart, Manifest, ManifestModel};
use millrace_protocol::plan::{
    Dedup, Difference, FIRST_RUN, Plan, RunNumber, ShardIndex, ShardOfRun,
};
use millrace_protocol::routes::{self, ArmIndex};
use millrace_protocol::tally::Tally;
use serde::Deserialize;

use crate::commits::{self, CommitsError};
use crate::job::{CheckedJob, Routing};
use crate::plan::{PlanError, copies};
use crate::postgres::{PostgresError, Sink};
use crate::store::{self, Location, StoreError};
use crate::work::call::receipts;

/// Why a run could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// The commits could not be read.
    #[error("the commits could not be read")]
    Commits(#[from] CommitsError),
    /// A file of the output could not be read or written.
    #[error("a file of the output could not be read or written")]
    Store(#[from] StoreError),
    /// A commit names a file that is not there.
    #[error(
        "shard {shard} is committed but its file {path} is missing: the output was changed by hand"
    )]
    PartMissing {
        /// The shard.
        shard: ShardIndex,
        /// The file below the output.
        path: String,
    },
    /// What duplicates get could not be found out.
    #[error("it could not be found out what duplicates get")]
    Copies(#[from] Box<PlanError>),
    /// The results could not be loaded into the table that the job names.
    #[error(
        "the results could not be loaded; they are in the output, and a job with the same output goes on"
    )]
    Postgres(#[from] PostgresError),
    /// `manifest.json` is not one.
    #[error("{path} cannot be read: {message}")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

/// What finishing came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// The manifest is written; it names failed shards if there are any.
    Finished(Box<Manifest>),
    /// These shards are neither committed nor given up: they must be queued again. Shards of duplicates
    /// are among them only once no other is, with what their rows get.
    Incomplete(Vec<ShardIndex>),
}

/// Which shards need no commit, and where results go besides the output.
#[derive(Debug, Clone, Copy, Default)]
pub struct FinishOptions<'a> {
    /// Shards that the lease store gave up, with their reasons.
    pub given_up: &'a [DeadLetter],
    /// Why all others without a commit are given up, if they are.
    pub give_up: Option<&'a str>,
    /// The table that the job names, if it names one.
    pub sink: Option<&'a Sink>,
}

/// Finishes a run.
pub async fn finish(
    output: &Location,
    job: &CheckedJob,
    plan: &Plan,
    options: FinishOptions<'_>,
) -> Result<Finish, FinishError> {
    let FinishOptions {
        given_up,
        give_up,
        sink,
    } = options;
    let committed = commits::list(output, plan.run).await?;
    let earlier = match plan.run {
        FIRST_RUN => None,
        _ => read_manifest(output).await?,
    };
    let settled = receipts::settled(plan, &committed, earlier.as_ref());
    let paid_besides = receipts::paid_by_arms(output, plan.run, &settled).await?;
    let (live, failed, missing) = cover(plan, committed, given_up, give_up);
    if !missing.is_empty() {
        let missing = next_of(plan, missing);
        if plan.shards[missing[0] as usize].is_of_duplicates() {
            let live = over_earlier(earlier, plan.run, live);
            let found = copies::find(output, plan, &live, &missing).await;
            found.map_err(Box::new)?;
        }
        return Ok(Finish::Incomplete(missing));
    }
    let is_local = job.output.uri.starts_with("file://");
    clean_up(output, is_local, plan, &live, failed.is_empty()).await?;
    let difference = match &plan.carried {
        Some(carried) => Some(difference(&carried.difference, &live)),
        None => earlier.as_ref().and_then(|it| it.difference.clone()),
    };
    let live = over_earlier(earlier, plan.run, live);
    let merged = if job.output.merge && failed.is_empty() {
        Some(merge::merge(output, &live, job.output.zstd).await?)
    } else {
        None
    };
    if let Some(sink) = sink {
        sink.load(output, &live).await?;
    }
    let ended = Ended {
        live,
        failed,
        paid_besides,
        difference,
        merged,
        table: sink.map(|sink| sink.table().to_owned()),
        at: jiff::Timestamp::now(),
    };
    let manifest = manifest(job, plan, ended);
    write(output, &manifest).await?;
    Ok(Finish::Finished(Box::new(manifest)))
}

/// Removes what no live part needs; most of it stays where shards were given up.
async fn clean_up(
    output: &Location,
    is_local: bool,
    plan: &Plan,
    live: &[LivePart],
    is_complete: bool,
) -> Result<(), FinishError> {
    if is_complete {
        receipts::discard_all(output, plan.run).await;
        // A worker that was thought dead may still commit a shard that was given up.
        sweep::sweep(output, is_local, plan, live).await?;
    }
    // One that has not uploaded all of its part yet commits nothing after this.
    sweep::abort_uploads(output, plan.run).await;
    Ok(())
}

/// What a manifest says that neither job nor plan say.
struct Ended {
    /// The live parts of all runs so far.
    live: Vec<LivePart>,
    /// The shards that were given up.
    failed: Vec<FailedShard>,
    /// What was paid for rows of shards without a commit, with the arm whose call it was.
    paid_besides: Vec<(Option<ArmIndex>, Cost)>,
    /// How the rows compare with those of an earlier output.
    difference: Option<Difference>,
    /// The merged file.
    merged: Option<String>,
    /// The table that results were loaded into.
    table: Option<String>,
    /// When the run was finished.
    at: jiff::Timestamp,
}

/// The manifest of a run. Pure.
fn manifest(job: &CheckedJob, plan: &Plan, ended: Ended) -> Manifest {
    let Ended {
        live,
        failed,
        paid_besides,
        difference,
        merged,
        table,
        at,
    } = ended;
    let dedup = plan.dedup.as_ref().map(|planned| Dedup {
        duplicates: live.iter().map(|part| part.commit.duplicates).sum(),
        ..planned.clone()
    });
    let mut totals: Tally = live.iter().map(|part| part.commit.tally()).sum();
    let arms = job.routing.as_deref().map(Routing::tallies);
    let arms = arms.unwrap_or_default();
    let of_parts = live.iter().flat_map(|part| &part.commit.routes);
    let mut routes = routes::sums(arms.iter().chain(of_parts));
    for (arm, cost) in paid_besides {
        totals.cost += cost;
        if let Some(route) = arm.and_then(|arm| routes.get_mut(arm as usize)) {
            route.cost += cost;
        }
    }
    Manifest {
        version: Manifest::VERSION,
        run: plan.run,
        spec_sha256: plan.spec_sha256.clone(),
        answers_sha256: plan.answers_sha256.clone(),
        complete: failed.is_empty(),
        totals,
        routes,
        currency: job.pricing().map(|pricing| pricing.currency.clone()),
        inputs: plan.inputs.clone(),
        order: plan.order.clone(),
        models: models(&live),
        difference,
        dedup,
        parts: live,
        failed_shards: failed,
        merged,
        postgres: table,
        finished_at: at.to_string(),
    }
}

/// Those of the `missing` shards that are next: duplicates come after all others.
fn next_of(plan: &Plan, missing: Vec<ShardIndex>) -> Vec<ShardIndex> {
    let is_last = |shard: &ShardIndex| plan.shards[*shard as usize].is_of_duplicates();
    let (last, first): (Vec<_>, Vec<_>) = missing.into_iter().partition(is_last);
    if first.is_empty() { last } else { first }
}

/// What became of what was planned: a worker that stands beside other models than those that gave the
/// answers asks about every row.
fn difference(planned: &Difference, live: &[LivePart]) -> Difference {
    let unchanged = live.iter().map(|part| part.commit.carried).sum();
    Difference {
        unchanged,
        fresh: (planned.unchanged + planned.fresh).saturating_sub(unchanged),
        ..planned.clone()
    }
}

/// The manifest of an output, if a run was finished there.
pub async fn read_manifest(output: &Location) -> Result<Option<Manifest>, FinishError> {
    let path = output.below(layout::MANIFEST);
    let Some(bytes) = store::read(&output.store, &path).await? else {
        return Ok(None);
    };
    parse_manifest(&bytes)
        .map(Some)
        .map_err(|message| FinishError::Unreadable {
            path: path.to_string(),
            message,
        })
}

fn parse_manifest(bytes: &[u8]) -> Result<Manifest, String> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version != Manifest::VERSION {
        return Err(format!(
            "its version is {version}, and this millrace reads version {}",
            Manifest::VERSION
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

async fn write(output: &Location, manifest: &Manifest) -> Result<(), FinishError> {
    let path = output.below(layout::MANIFEST);
    let bytes = serde_json::to_vec_pretty(manifest).expect("a manifest serialises");
    store::replace(&output.store, &path, bytes).await?;
    Ok(())
}

/// Splits the plan into shards with a commit, shards given up, and shards that are neither, of which there
/// is none if all others are given up. A commit counts even where the lease store gave its shard up.
fn cover(
    plan: &Plan,
    committed: Vec<Commit>,
    given_up: &[DeadLetter],
    give_up: Option<&str>,
) -> (Vec<LivePart>, Vec<FailedShard>, Vec<ShardIndex>) {
    let mut committed: HashMap<ShardIndex, Commit> = committed
        .into_iter()
        .map(|commit| (commit.shard, commit))
        .collect();
    let given_up: HashMap<ShardIndex, &str> = given_up
        .iter()
        .map(|letter| (letter.shard, letter.error.as_str()))
        .collect();
    let (mut live, mut failed, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for (shard, &range) in (0..).zip(&plan.shards) {
        if let Some(commit) = committed.remove(&shard) {
            live.push(LivePart {
                run: plan.run,
                range,
                commit,
            });
        } else if let Some(error) = given_up.get(&shard).copied().or(give_up) {
            failed.push(FailedShard {
                shard,
                range,
                error: error.to_owned(),
            });
        } else {
            missing.push(shard);
        }
    }
    (live, failed, missing)
}

/// The live parts of all runs so far: rows that `live`, the parts of `run`, ran again are no errors of
/// an earlier run any more.
fn over_earlier(earlier: Option<Manifest>, run: RunNumber, live: Vec<LivePart>) -> Vec<LivePart> {
    let again: HashSet<ShardOfRun> = live
        .iter()
        .filter_map(|part| part.range.failed_in)
        .collect();
    let earlier = earlier.into_iter().flat_map(|manifest| manifest.parts);
    // Of a run that is finished once more the manifest lists the parts already.
    let earlier = earlier.filter(|part| part.run < run);
    let earlier = earlier.map(|part| {
        let shard = ShardOfRun {
            run: part.run,
            shard: part.commit.shard,
        };
        match again.contains(&shard) {
            true => part.without_errors(),
            false => part,
        }
    });
    let mut parts: Vec<LivePart> = earlier.chain(live).collect();
    parts.sort_by_key(|part| (part.range.place(), part.run));
    parts
}

fn models(live: &[LivePart]) -> Vec<ManifestModel> {
    let mut digests: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, digest) in live.iter().flat_map(|part| &part.commit.models) {
        let of_name = digests.entry(name).or_default();
        if !of_name.contains(&digest.as_str()) {
            of_name.push(digest);
        }
    }
    let models = digests.into_iter().flat_map(|(name, digests)| {
        digests.into_iter().map(move |digest| ManifestModel {
            name: name.to_owned(),
            digest: digest.to_owned(),
        })
    });
    models.collect()
}

#[cfg(test)]
mod tests {
    use millrace_protocol::plan::{Shard, ShardRange};
    use millrace_protocol::tally::Rows;

    use super::*;

    fn plan(shards: u64) -> Plan {
        let shard = |start| {
            let end = start + 1;
            Shard::of(0, ShardRange::Bytes { start, end })
        };
        Plan {
            version: Plan::VERSION,
            run: 1,
            spec_sha256: "spec".to_owned(),
            spec: vec![],
            answers_sha256: "answers".to_owned(),
            incremental_from: None,
            carried: None,
            dedup: None,
            inputs: Vec::new(),
            shards: (0..shards).map(shard).collect(),
            order: Vec::new(),
        }
    }

    fn commit(shard: ShardIndex, digest: &str) -> Commit {
        Commit {
            shard,
            epoch: 1,
            attempt: "a".to_owned(),
            part: None,
            errors: None,
            ledger: None,
            error_ledger: None,
            carried: 0,
            duplicates: 0,
            rows: Rows {
                succeeded: 2,
                failed: 1,
                skipped: 0,
            },
            tokens: 5,
            cost: Default::default(),
            routes: Vec::new(),
            sha256: None,
            models: [("m".to_owned(), digest.to_owned())].into(),
        }
    }

    fn letter(shard: ShardIndex) -> DeadLetter {
        DeadLetter {
            shard,
            deliveries: 3,
            error: "no".to_owned(),
        }
    }

    #[test]
    fn a_shard_is_live_or_failed_or_missing() {
        let (live, failed, missing) = cover(&plan(3), vec![commit(0, "x")], &[letter(2)], None);
        assert_eq!(
            live.iter()
                .map(|part| part.commit.shard)
                .collect::<Vec<_>>(),
            [0]
        );
        assert_eq!(
            failed.iter().map(|failed| failed.shard).collect::<Vec<_>>(),
            [2]
        );
        assert_eq!(missing, [1]);
    }

    #[test]
    fn a_run_that_is_given_up_misses_no_shard() {
        let give_up = Some("the deadline passed");
        let committed = vec![commit(1, "x")];
        let (live, failed, missing) = cover(&plan(4), committed, &[letter(2)], give_up);
        let failed: Vec<_> = failed
            .iter()
            .map(|failed| (failed.shard, failed.error.as_str()))
            .collect();
        let expected = [
            (0, "the deadline passed"),
            (2, "no"),
            (3, "the deadline passed"),
        ];
        assert_eq!(failed, expected);
        assert_eq!((live.len(), missing), (1, vec![]));
    }

    #[test]
    fn a_commit_is_believed_before_a_dead_letter() {
        let (live, failed, missing) = cover(&plan(1), vec![commit(0, "x")], &[letter(0)], None);
        assert_eq!((live.len(), failed.len(), missing.len()), (1, 0, 0));
    }

    #[test]
    fn a_manifest_of_another_version_is_refused_by_its_version() {
        let error = parse_manifest(br#"{"version": 2, "shape": "another"}"#).unwrap_err();
        assert!(error.contains("its version is 2"), "{error}");
    }

    #[test]
    fn parts_made_by_different_models_are_told_apart() {
        let (live, _, _) = cover(
            &plan(3),
            vec![commit(0, "x"), commit(1, "y"), commit(2, "x")],
            &[],
            None,
        );
        let digests: Vec<_> = models(&live)
            .into_iter()
            .map(|model| model.digest)
            .collect();
        assert_eq!(digests, ["x", "y"]);
    }
}
