//! The worker: claims shards, works them off, commits and acknowledges them.
//!
//! It believes the output store before the lease store: a shard that has a commit is acknowledged
//! without work, and a lease store that forgot everything is filled again from plan and commits.

pub mod call;
pub(crate) mod carried;
pub(crate) mod chunked;
pub mod client;
pub mod commit;
pub mod duplicates;
mod failed;
mod files;
mod keeper;
mod lines;
mod list;
mod listed;
pub mod part;
pub mod progress;
pub mod routed;
pub mod selection;
mod shard;
pub mod submit;
#[cfg(test)]
mod submit_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod window;
mod windows;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use millrace_protocol::lease::{BUDGET_SPENT, Lease, TOO_MANY_FAILED, TOO_MANY_FAILED_INDEXES};
use millrace_protocol::tally::Tally;
use millrace_telemetry::chain;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::commits::{self, CommitsError};
use crate::metrics::ShardOutcome;
use crate::trace;
use millrace_leases::{Acknowledgement, Claim, FailOutcome, LeaseError, LeaseStore};
pub use shard::{Answerer, Asker, ShardContext, ShardError};
use submit::SubmitError;

/// Shards in hand at a time: while one writes its last window, the next already fills the queue.
pub const SHARDS_IN_HAND_MAX: usize = 2;

/// Pause before asking again for a shard that another worker may give back.
const WAIT_FOR_SHARD: Duration = Duration::from_millis(200);

/// Pause before asking a lease store again that could not be reached.
const WAIT_FOR_STORE: Duration = Duration::from_millis(500);

/// Pause before another shard is claimed after one failed, so that a store that is away for a
/// moment does not use up every delivery of every shard.
const WAIT_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Attending turns a panic into a failure of its shard.
const ATTENDS_WITHOUT_PANIC: &str = "attending to a shard does not panic";

/// Why a worker stopped before its job was drained.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Nothing is wrong with any shard, but none can be worked off here: the server, the output or
    /// the rights on the input fail.
    #[error("no shard can be worked off here")]
    Shard(#[source] ShardError),
    /// The lease store does not work at all.
    #[error("the lease store failed")]
    Lease(#[from] LeaseError),
    /// The commits could not be read.
    #[error("the lease store could not be filled again")]
    Commits(#[from] CommitsError),
}

impl WorkError {
    /// Whether a store refused or failed, which other credentials may heal.
    pub fn is_of_stores(&self) -> bool {
        match self {
            WorkError::Shard(error) => error.is_of_stores(),
            WorkError::Commits(_) => true,
            WorkError::Lease(_) => false,
        }
    }

    /// Whether nothing is wrong but that the job has paid what it may.
    pub fn is_spent(&self) -> bool {
        matches!(
            self,
            WorkError::Shard(ShardError::Submit(SubmitError::Spent))
        )
    }
}

/// How a worker ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every shard of the job is committed or given up.
    Drained,
    /// It was asked to stop; its leases are released.
    Stopped,
    /// It gave the job up; its leases are released.
    GivenUp(GiveUp),
}

/// Why a job is given up in the midst of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// More rows failed than `spec.maxFailedRows`.
    TooManyFailedRows,
    /// More shards were given up than `spec.maxFailedIndexes`.
    TooManyFailedIndexes,
    /// `spec.budget.maxCost` is spent.
    BudgetSpent,
}

impl GiveUp {
    /// One word, as the condition of a job says it.
    pub fn reason(self) -> &'static str {
        match self {
            GiveUp::TooManyFailedRows => "TooManyFailedRows",
            GiveUp::TooManyFailedIndexes => "TooManyFailedIndexes",
            GiveUp::BudgetSpent => "BudgetSpent",
        }
    }

    /// What is said of shards that were not worked off.
    pub fn of_shards(self) -> &'static str {
        match self {
            GiveUp::TooManyFailedRows => TOO_MANY_FAILED,
            GiveUp::TooManyFailedIndexes => TOO_MANY_FAILED_INDEXES,
            GiveUp::BudgetSpent => BUDGET_SPENT,
        }
    }
}

/// Works off the shards of one run until none is left or it is told to stop.
pub struct Worker {
    ctx: Arc<ShardContext>,
    leases: Arc<dyn LeaseStore>,
    lease_ttl: Duration,
    owner: String,
}

/// A shard in hand.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    /// The moment before the lease was asked for: it may have begun at any time since then.
    claimed_at: Instant,
}

/// What there is to settle of a shard.
enum Attempt {
    /// A commit of another attempt, found before any work.
    Standing(Tally),
    /// Files whose commit is still to be made.
    Ours(Box<shard::Worked>),
}

/// What became of a shard in hand.
enum Outcome {
    Settled,
    GivenBack,
    Failed(ShardError),
}

impl Outcome {
    /// What is counted.
    fn counted(&self) -> ShardOutcome {
        match self {
            Outcome::Settled => ShardOutcome::Committed,
            Outcome::Failed(error) if !error.is_everyones() => ShardOutcome::Failed,
            Outcome::GivenBack | Outcome::Failed(_) => ShardOutcome::Released,
        }
    }
}

impl Worker {
    /// A worker with a random owner token.
    pub fn new(ctx: Arc<ShardContext>, leases: Arc<dyn LeaseStore>, lease_ttl: Duration) -> Self {
        let owner = format!("{:016x}", rand::random::<u64>());
        Self {
            ctx,
            leases,
            lease_ttl,
            owner,
        }
    }

    /// Runs until the job is drained or `stop` is cancelled. On stop, and after an error, no shard is
    /// claimed any more, shards being committed are committed, and all others are released.
    pub async fn run(self, stop: CancellationToken) -> Result<Ended, WorkError> {
        let worker = Arc::new(self);
        let stop = stop.child_token();
        let mut in_hand = JoinSet::new();
        let mut ended = worker.work_off(&mut in_hand, &stop).await;
        loop {
            if ended.is_err() {
                stop.cancel();
            }
            match in_hand.join_next().await {
                None => return ended,
                Some(attended) => {
                    let attended = attended.expect(ATTENDS_WITHOUT_PANIC);
                    // The first error is the reason; the others follow from it.
                    ended = ended.and_then(|ended| attended.map(|()| ended));
                }
            }
        }
    }

    /// Claims shards and attends to them, some at a time, until none is left, one ends with an error
    /// or `stop` is cancelled. Leaves those that are still worked on in hand.
    async fn work_off(
        self: &Arc<Self>,
        in_hand: &mut JoinSet<Result<(), WorkError>>,
        stop: &CancellationToken,
    ) -> Result<Ended, WorkError> {
        loop {
            if stop.is_cancelled() {
                return Ok(Ended::Stopped);
            }
            if in_hand.len() < SHARDS_IN_HAND_MAX {
                match self.claim().await? {
                    Claimed::Lease(held) => {
                        let (worker, stop) = (self.clone(), stop.clone());
                        in_hand.spawn(async move { worker.attend(held, stop).await });
                        continue;
                    }
                    Claimed::Drained if in_hand.is_empty() => return Ok(Ended::Drained),
                    Claimed::Drained | Claimed::Later => {}
                }
            }
            tokio::select! {
                Some(attended) = in_hand.join_next() => attended.expect(ATTENDS_WITHOUT_PANIC)?,
                () = tokio::time::sleep(WAIT_FOR_SHARD), if in_hand.len() < SHARDS_IN_HAND_MAX => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Asks for one shard to work on.
    pub async fn claim(&self) -> Result<Claimed, WorkError> {
        let claimed_at = Instant::now();
        match self.leases.claim(&self.owner).await {
            Ok(Claim::Lease(lease)) => Ok(Claimed::Lease(Held { lease, claimed_at })),
            Ok(Claim::Drained) => Ok(Claimed::Drained),
            Ok(Claim::Wait) => Ok(Claimed::Later),
            Ok(Claim::Unknown) => {
                tracing::warn!("the lease store lost this run: filling it from plan and commits");
                self.refill().await?;
                Ok(Claimed::Later)
            }
            Err(error) if error.is_unavailable() => {
                tracing::warn!(%error, "the lease store is away: waiting for it");
                tokio::time::sleep(WAIT_FOR_STORE).await;
                Ok(Claimed::Later)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn refill(&self) -> Result<(), WorkError> {
        let committed = commits::list(&self.ctx.output, self.ctx.plan.run).await?;
        match commits::fill(self.leases.as_ref(), &self.ctx.plan, &committed).await {
            Err(error) if error.is_unavailable() => Ok(()),
            filled => Ok(filled?),
        }
    }

    /// Works off one leased shard, whatever happens to it, and settles it with the lease store.
    ///
    /// Cancelling `stop` gives the shard back, unless it is being committed.
    pub async fn attend(&self, held: Held, stop: CancellationToken) -> Result<(), WorkError> {
        let span = trace::shard(&self.ctx.job, self.ctx.plan.run, &held.lease);
        self.attend_in_span(held, stop).instrument(span).await
    }

    async fn attend_in_span(&self, held: Held, stop: CancellationToken) -> Result<(), WorkError> {
        let (lease, shard) = (&held.lease, held.lease.shard);
        let _in_hand = self.ctx.progress.metrics().take_in_hand();
        // A panic unwinds out of this shard's attempt alone, which is dropped whole.
        let settled = AssertUnwindSafe(self.work_and_settle(&held, &stop)).catch_unwind();
        let outcome = settled
            .await
            .unwrap_or(Outcome::Failed(ShardError::Panicked));
        self.note(&outcome);
        match outcome {
            Outcome::Settled => Ok(()),
            Outcome::GivenBack => {
                self.ctx.progress.let_go(shard);
                Ok(())
            }
            Outcome::Failed(error) if error.is_everyones() => {
                self.ctx.progress.let_go(shard);
                self.quietly("release", shard, self.leases.release(lease))
                    .await;
                Err(WorkError::Shard(error))
            }
            Outcome::Failed(error) => {
                self.fail(lease, &error).await;
                Ok(())
            }
        }
    }

    fn note(&self, outcome: &Outcome) {
        let counted = outcome.counted();
        self.ctx.progress.metrics().note_shard(counted);
        trace::note_outcome(counted);
        if let Outcome::Failed(error) = outcome {
            millrace_telemetry::note_error(error);
        }
    }

    async fn work_and_settle(&self, held: &Held, stop: &CancellationToken) -> Outcome {
        let Held { lease, claimed_at } = held;
        let shard = lease.shard;
        let kept = keeper::keep(self.leases.as_ref(), lease, self.lease_ttl, *claimed_at);
        tokio::pin!(kept);
        let attempt = tokio::select! {
            biased;
            lost = &mut kept => {
                tracing::warn!(shard, epoch = lease.epoch, ?lost, "the lease is lost: the shard is let go");
                return Outcome::GivenBack;
            }
            () = stop.cancelled() => {
                self.quietly("release", shard, self.leases.release(lease)).await;
                return Outcome::GivenBack;
            }
            attempt = self.attempt(lease) => match attempt {
                Ok(attempt) => attempt,
                Err(error) => return Outcome::Failed(error),
            },
        };
        // From here on the attempt is complete: the commit decides, not the lease.
        let settled = match attempt {
            Attempt::Standing(tally) => Ok(tally),
            Attempt::Ours(worked) => {
                let settling = shard::settle(&self.ctx, *worked);
                settling.instrument(trace::commit()).await
            }
        };
        match settled {
            Ok(tally) => {
                trace::note_tally(tally);
                self.acknowledge(lease, tally).await;
                Outcome::Settled
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    /// Finds the shard's commit, or works the shard off.
    async fn attempt(&self, lease: &Lease) -> Result<Attempt, ShardError> {
        let (output, run) = (&self.ctx.output, self.ctx.plan.run);
        if let Some(standing) = commit::read(output, run, lease.shard).await? {
            return Ok(Attempt::Standing(standing.tally()));
        }
        let error = match shard::work(&self.ctx, lease).await {
            Ok(worked) => return Ok(Attempt::Ours(Box::new(worked))),
            Err(error) => error,
        };
        // Whoever committed the shard meanwhile may have finished the run as well, and swept away
        // the files that this attempt was writing.
        match commit::read(output, run, lease.shard).await {
            Ok(Some(standing)) => Ok(Attempt::Standing(standing.tally())),
            Ok(None) | Err(_) => Err(error),
        }
    }

    async fn acknowledge(&self, lease: &Lease, tally: Tally) {
        self.ctx.progress.committed(lease.shard, tally);
        let acknowledged = async {
            // A lease that ran out changes nothing about the commit, which stands.
            match self.leases.acknowledge(lease, &tally).await? {
                Acknowledgement::Lost => self.leases.mark_committed(lease.shard, tally).await,
                counted => Ok(counted),
            }
        };
        self.quietly("acknowledge", lease.shard, acknowledged).await;
    }

    async fn fail(&self, lease: &Lease, error: &ShardError) {
        let reason = chain(error);
        tracing::warn!(shard = lease.shard, epoch = lease.epoch, %reason, "the shard failed");
        match self.leases.fail(lease, &reason, error.is_permanent()).await {
            Ok(FailOutcome::Dead) => self.ctx.progress.failed(lease.shard),
            Ok(FailOutcome::Requeued | FailOutcome::Lost) => {
                self.ctx.progress.let_go(lease.shard);
                tokio::time::sleep(WAIT_AFTER_FAILURE).await;
            }
            Err(error) => {
                self.ctx.progress.let_go(lease.shard);
                tracing::warn!(shard = lease.shard, %error, "the failure could not be recorded");
            }
        }
    }

    /// Tells the lease store something that the output store already knows or that a TTL heals.
    async fn quietly<T>(
        &self,
        what: &str,
        shard: u32,
        told: impl Future<Output = Result<T, LeaseError>>,
    ) {
        if let Err(error) = told.await {
            tracing::warn!(shard, %error, "could not {what} a shard: its lease will expire");
        }
    }
}

/// What asking for a shard came to.
pub enum Claimed {
    /// A shard to attend to.
    Lease(Held),
    /// Nothing for now; ask again.
    Later,
    /// Every shard of the run is committed or given up.
    Drained,
}
