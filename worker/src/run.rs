//! The steps of a run, in order: prepare → work → conclude. The local command drives all three in
//! one process; in a cluster each is a process of its own. The code is the same.

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::commit::Commit;
use millrace_protocol::lease::DeadLetter;
use millrace_protocol::manifest::Manifest;
use millrace_protocol::plan::{FIRST_RUN, Plan, RunNumber, ShardIndex};
use tokio_util::sync::CancellationToken;

use crate::answerer;
use crate::commits::{self, CommitsError};
use crate::finish::{self, Finish, FinishError, FinishOptions};
use crate::job::{CheckedJob, Postgres};
use crate::plan::{self, Drafted, PlanError};
use crate::postgres::Sink;
use crate::store::{Location, StoreError, Stores};
use crate::trace;
use crate::work::client::remote::ApiError;
use crate::work::client::{AddressError, ClientError, ServerAddress};
use crate::work::progress::{Progress, ProgressSnapshot};
use crate::work::{Ended, GiveUp, ShardContext, WorkError, Worker};
use millrace_leases::{LeaseError, LeaseStore};
use millrace_telemetry::in_span;
use tracing::Span;

/// Dead letters that are read at a time; each is at most a kilobyte and a bit.
const GIVEN_UP_PAGE: usize = 1_000;

/// Why a run did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The output could not be opened.
    #[error("spec.output.uri cannot be used")]
    Output(#[source] StoreError),
    /// Planning failed.
    #[error("the run could not be planned")]
    Plan(#[from] PlanError),
    /// There is no plan to work off.
    #[error("{output} holds no plan: run `millrace-worker plan` first")]
    NoPlan {
        /// The output.
        output: String,
    },
    /// The commits could not be read.
    #[error("the commits could not be read")]
    Commits(#[from] CommitsError),
    /// The lease store failed.
    #[error("the lease store failed")]
    Lease(#[from] LeaseError),
    /// The server that is given cannot be the job's.
    #[error("the server cannot be used")]
    Address(#[from] AddressError),
    /// The inference-server did not answer.
    #[error("the inference-server could not be asked for its models")]
    Server(#[source] ClientError),
    /// The API elsewhere cannot be asked.
    #[error(transparent)]
    Remote(#[from] ApiError),
    /// Working off shards failed.
    #[error("the run stopped")]
    Work(#[from] WorkError),
    /// The manifest of the output could not be read.
    #[error("the manifest of the output could not be read")]
    Manifest(#[source] FinishError),
    /// Commits that were made have disappeared.
    #[error(
        "{shards} shards were committed and their records are gone: the output was changed by hand; run again"
    )]
    Incomplete {
        /// Shards without a record.
        shards: usize,
    },
    /// Finishing failed.
    #[error("the run could not be finished")]
    Finish(#[from] FinishError),
}

/// A run that is planned.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The plan that stands.
    pub plan: Plan,
    /// What earlier processes committed.
    pub committed: Vec<Commit>,
    /// Where the output is.
    pub output: Location,
}

/// What an output says of a job before it is run.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// The run that the job asks for is finished, with every shard committed, and merged and loaded if
    /// it asks for that.
    Finished(Box<Manifest>),
    /// This run comes next: the one that the job asks for, or an earlier one that it builds on.
    Next(RunNumber),
}

/// Looks up which run of the job comes next.
pub async fn find(stores: &Stores, job: &CheckedJob) -> Result<Found, RunError> {
    let output = stores.open(&job.output.uri).map_err(RunError::Output)?;
    let manifest = finish::read_manifest(&output).await;
    let manifest = manifest.map_err(RunError::Manifest)?;
    let ours = manifest.filter(|manifest| manifest.spec_sha256 == job.spec_sha256);
    let Some(manifest) = ours else {
        return Ok(Found::Next(FIRST_RUN));
    };
    // A later run that was begun goes on first: no other one may do what it holds.
    let is_begun = plan::exists(&output, manifest.run + 1).await?;
    if manifest.run < job.run || is_begun {
        return Ok(Found::Next(manifest.run + 1));
    }
    let is_merged = !job.output.merge || manifest.merged.is_some();
    let table = job.output.postgres.as_ref().map(Postgres::name);
    let is_loaded = table.is_none() || manifest.postgres == table;
    if manifest.complete && is_merged && is_loaded {
        return Ok(Found::Finished(Box::new(manifest)));
    }
    // Some shards were given up: the run goes on, and tries them once more.
    Ok(Found::Next(manifest.run))
}

/// A run that is looked into, and for which nothing is written yet.
#[derive(Debug)]
pub struct Draft {
    drafted: Drafted,
    /// Planning ends once the plan stands.
    span: Span,
}

/// Plans the run, or reads the plan that is there, and writes nothing.
pub async fn draft(stores: &Stores, job: &CheckedJob) -> Result<Draft, RunError> {
    let span = trace::plan(job, job.run);
    let drafted = in_span(span.clone(), look(stores, job)).await?;
    Ok(Draft { drafted, span })
}

/// The plan that a run would begin with. Nobody hears of it.
pub async fn look(stores: &Stores, job: &CheckedJob) -> Result<Drafted, RunError> {
    let output = stores.open(&job.output.uri).map_err(RunError::Output)?;
    let earlier = finish::read_manifest(&output).await;
    let earlier = earlier.map_err(RunError::Manifest)?;
    Ok(plan::drafted(stores, job, earlier.as_ref()).await?)
}

/// Plans the run, or reads the plan that is there, and looks up what is committed.
pub async fn prepare(stores: &Stores, job: &CheckedJob) -> Result<Prepared, RunError> {
    let draft = draft(stores, job).await?;
    settle(stores, job, draft).await
}

/// Writes the plan of a draft, unless it stands, and looks up what is committed.
pub async fn settle(stores: &Stores, job: &CheckedJob, draft: Draft) -> Result<Prepared, RunError> {
    let Draft { drafted, span } = draft;
    let output = stores.open(&job.output.uri).map_err(RunError::Output)?;
    let plan = in_span(span.clone(), plan::settled(stores, job, drafted)).await?;
    trace::note_planned(&span, &plan);
    let committed = commits::list(&output, plan.run).await?;
    Ok(Prepared {
        plan,
        committed,
        output,
    })
}

/// Reads the plan that is there.
pub async fn resume(stores: &Stores, job: &CheckedJob) -> Result<Prepared, RunError> {
    let output = stores.open(&job.output.uri).map_err(RunError::Output)?;
    let plan = plan::existing(&output, job).await?;
    let plan = plan.ok_or_else(|| RunError::NoPlan {
        output: job.output.uri.clone(),
    })?;
    let committed = commits::list(&output, plan.run).await?;
    Ok(Prepared {
        plan,
        committed,
        output,
    })
}

/// What working off a run needs besides its plan.
pub struct WorkOptions {
    /// The server that answers rows.
    pub server: ServerAddress,
    /// The lease store, shared by all workers of the run.
    pub leases: Arc<dyn LeaseStore>,
    /// How long a lease holds without renewal.
    pub lease_ttl: Duration,
    /// Counts for whoever shows them.
    pub progress: Arc<Progress>,
    /// Cancelled to stop early.
    pub stop: CancellationToken,
}

/// The worker of a prepared run, once the server has told which models it has loaded.
pub async fn worker(
    stores: &Stores,
    job: &CheckedJob,
    prepared: &Prepared,
    options: &WorkOptions,
) -> Result<Worker, RunError> {
    let Prepared {
        plan,
        committed: _,
        output,
    } = prepared;
    let WorkOptions {
        server,
        leases,
        lease_ttl,
        progress,
        stop: _,
    } = options;
    let (answerer, models) = answerer::open(server, job, output).await?;
    let context = ShardContext {
        job: job.clone(),
        plan: plan.clone(),
        stores: stores.with_inline_rows(&job.input),
        output: output.clone(),
        answerer,
        models,
        progress: progress.clone(),
        copies: Default::default(),
    };
    Ok(Worker::new(Arc::new(context), leases.clone(), *lease_ttl))
}

/// Why the job is to be given up for what failed of it, if more did than it allows.
fn too_many_failed(job: &CheckedJob, progress: &Progress) -> Option<GiveUp> {
    let ProgressSnapshot {
        shards_failed,
        done,
        rows_begun,
        ..
    } = progress.snapshot();
    let rows_max = job.failed_rows_max;
    if rows_max.is_some_and(|max| max.is_exceeded(done.rows.failed, rows_begun)) {
        return Some(GiveUp::TooManyFailedRows);
    }
    let shards_max = job.failed_shards_max;
    let is_exceeded = shards_max.is_some_and(|max| shards_failed > max);
    is_exceeded.then_some(GiveUp::TooManyFailedIndexes)
}

/// Waits until more failed than the job allows. Looks at every change: each row after that is paid for.
async fn until_too_many_failed(job: &CheckedJob, progress: &Progress) -> GiveUp {
    if job.failed_rows_max.is_none() && job.failed_shards_max.is_none() {
        return std::future::pending().await;
    }
    loop {
        if let Some(give_up) = too_many_failed(job, progress) {
            return give_up;
        }
        progress.changed().await;
    }
}

/// Works off shards until none is left or `stop` is cancelled.
pub async fn work(
    stores: &Stores,
    job: &CheckedJob,
    prepared: &Prepared,
    options: &WorkOptions,
) -> Result<Ended, RunError> {
    let shards = prepared.plan.shards.len() as u32;
    options.progress.start(shards, &prepared.committed);
    let worker = tokio::select! {
        worker = worker(stores, job, prepared, options) => worker?,
        () = options.stop.cancelled() => return Ok(Ended::Stopped),
    };
    let stop = options.stop.child_token();
    let mut working = std::pin::pin!(worker.run(stop.clone()));
    tokio::select! {
        ended = &mut working => match ended {
            Err(error) if error.is_spent() => Ok(Ended::GivenUp(GiveUp::BudgetSpent)),
            // The last one that was too many may have been the last one of all.
            Ok(Ended::Drained) => Ok(match too_many_failed(job, &options.progress) {
                Some(give_up) => Ended::GivenUp(give_up),
                None => Ended::Drained,
            }),
            ended => Ok(ended?),
        },
        give_up = until_too_many_failed(job, &options.progress) => {
            stop.cancel();
            working.await?;
            Ok(Ended::GivenUp(give_up))
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEnd {
    /// The manifest is written.
    Finished(Box<Manifest>),
    /// It was given up: the manifest is written over what is done. The same command goes on once the
    /// job says so.
    GivenUp(GiveUp, Box<Manifest>),
    /// It was asked to stop; the same command goes on.
    Stopped,
}

/// Works off and finishes a prepared run in this process. Its results also go into `sink`, if there is
/// one.
pub async fn drive(
    stores: &Stores,
    job: &CheckedJob,
    mut prepared: Prepared,
    options: &WorkOptions,
    sink: Option<&Sink>,
) -> Result<RunEnd, RunError> {
    let mut missing_before = Vec::new();
    loop {
        commits::fill(options.leases.as_ref(), &prepared.plan, &prepared.committed).await?;
        let give_up = match work(stores, job, &prepared, options).await? {
            Ended::Stopped => return Ok(RunEnd::Stopped),
            Ended::GivenUp(give_up) => Some(give_up),
            Ended::Drained => None,
        };
        let reason = give_up.map(GiveUp::of_shards);
        match conclude(job, &prepared, options.leases.as_ref(), reason, sink).await? {
            Finish::Finished(manifest) => {
                return Ok(match give_up.filter(|_| !manifest.complete) {
                    Some(give_up) => RunEnd::GivenUp(give_up, manifest),
                    None => RunEnd::Finished(manifest),
                });
            }
            Finish::Incomplete(missing) if missing == missing_before => {
                return Err(RunError::Incomplete {
                    shards: missing.len(),
                });
            }
            Finish::Incomplete(missing) => {
                let shards = missing.len();
                if prepared.plan.shards[missing[0] as usize].is_of_duplicates() {
                    tracing::info!(shards, "every other row has ended: copying for duplicates");
                } else {
                    tracing::warn!(shards, "commits are missing: queueing them again");
                }
                prepared.committed = commits::list(&prepared.output, prepared.plan.run).await?;
                commits::queue(options.leases.as_ref(), &missing).await?;
                missing_before = missing;
            }
        }
    }
}

/// Verifies and finishes the run. With a `give_up` no shard is worked on any more, and those without
/// a commit are given up for this reason.
pub async fn conclude(
    job: &CheckedJob,
    prepared: &Prepared,
    leases: &dyn LeaseStore,
    give_up: Option<&str>,
    sink: Option<&Sink>,
) -> Result<Finish, RunError> {
    let given_up = match given_up(leases).await {
        // The reasons of those that were given up before are in the lease store alone.
        Err(error) if give_up.is_some() && error.is_unavailable() => Vec::new(),
        given_up => given_up?,
    };
    let options = FinishOptions {
        given_up: &given_up,
        give_up,
        sink,
    };
    let span = trace::finish(job, prepared.plan.run);
    let finishing = finish::finish(&prepared.output, job, &prepared.plan, options);
    Ok(in_span(span, finishing).await?)
}

/// All shards that the lease store gave up; a plan bounds how many there can be.
async fn given_up(leases: &dyn LeaseStore) -> Result<Vec<DeadLetter>, LeaseError> {
    let mut all: Vec<DeadLetter> = Vec::new();
    loop {
        let first: ShardIndex = all.last().map_or(0, |letter| letter.shard + 1);
        let page = leases.dead_letters(first, GIVEN_UP_PAGE).await?;
        let is_last = page.len() < GIVEN_UP_PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

#[cfg(test)]
#[path = "dedup_tests.rs"]
mod dedup_tests;
#[cfg(test)]
#[path = "incremental_tests.rs"]
mod incremental_tests;
#[cfg(test)]
#[path = "order_tests.rs"]
mod order_tests;
#[cfg(test)]
#[path = "rerun_tests.rs"]
mod rerun_tests;
#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
