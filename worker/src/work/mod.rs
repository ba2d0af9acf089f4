//! The worker: claims shards, works them off, commits and acknowledges them.
//!
//! It believes the output store before the lease store: a shard that has a commit is acknowledged
//! without work, and a lease store that forgot everything is filled again from plan and commits.

pub mod client;
pub mod commit;
mod keeper;
mod lines;
pub mod part;
pub mod progress;
mod shard;
pub mod submit;
mod window;

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::lease::Lease;
use millrace_protocol::tally::Tally;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commits::{self, CommitsError};
use millrace_leases::{Acknowledgement, Claim, FailOutcome, LeaseError, LeaseStore};
pub use shard::{ShardContext, ShardError};

/// Shards in hand at a time: while one writes its last window, the next already fills the queue.
pub const SHARDS_IN_HAND_MAX: usize = 2;

/// Pause before asking again for a shard that another worker may give back.
const WAIT_FOR_SHARD: Duration = Duration::from_millis(200);

/// Pause before asking a lease store again that could not be reached.
const WAIT_FOR_STORE: Duration = Duration::from_millis(500);

/// Pause before another shard is claimed after one failed, so that a store that is away for a
/// moment does not use up every delivery of every shard.
const WAIT_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Why a worker stopped before its job was drained.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Nothing is wrong with any shard, but none can be worked off here.
    #[error("no shard can be worked off here")]
    Shard(#[source] ShardError),
    /// The lease store does not work at all.
    #[error("the lease store failed")]
    Lease(#[from] LeaseError),
    /// The commits could not be read.
    #[error("the lease store could not be filled again")]
    Commits(#[from] CommitsError),
}

/// How a worker ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every shard of the job is committed or given up.
    Drained,
    /// It was asked to stop; its leases are released.
    Stopped,
}

/// Works off the shards of one run until none is left or it is told to stop.
pub struct Worker {
    ctx: Arc<ShardContext>,
    leases: Arc<dyn LeaseStore>,
    lease_ttl: Duration,
    owner: String,
}

/// What became of a shard in hand.
enum Outcome {
    Settled,
    GivenBack,
    Failed(ShardError),
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

    /// Runs until the job is drained or `stop` is cancelled. On stop no shard is claimed any more,
    /// shards being committed are committed, and all others are released.
    pub async fn run(self, stop: CancellationToken) -> Result<Ended, WorkError> {
        let worker = Arc::new(self);
        let mut in_hand: JoinSet<Result<(), WorkError>> = JoinSet::new();
        let drained = loop {
            if stop.is_cancelled() {
                break false;
            }
            if in_hand.len() < SHARDS_IN_HAND_MAX {
                match worker.claim().await? {
                    Claimed::Lease(lease) => {
                        let (worker, stop) = (worker.clone(), stop.clone());
                        in_hand.spawn(async move { worker.attend(lease, stop).await });
                        continue;
                    }
                    Claimed::Drained if in_hand.is_empty() => break true,
                    Claimed::Drained | Claimed::Later => {}
                }
            }
            tokio::select! {
                Some(done) = in_hand.join_next() => done.expect("a shard's task does not panic")?,
                () = tokio::time::sleep(WAIT_FOR_SHARD), if in_hand.len() < SHARDS_IN_HAND_MAX => {}
                () = stop.cancelled() => {}
            }
        };
        while let Some(done) = in_hand.join_next().await {
            done.expect("a shard's task does not panic")?;
        }
        Ok(if drained {
            Ended::Drained
        } else {
            Ended::Stopped
        })
    }

    /// Asks for one shard to work on.
    pub async fn claim(&self) -> Result<Claimed, WorkError> {
        match self.leases.claim(&self.owner).await {
            Ok(Claim::Lease(lease)) => Ok(Claimed::Lease(lease)),
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
    pub async fn attend(&self, lease: Lease, stop: CancellationToken) -> Result<(), WorkError> {
        let shard = lease.shard;
        let outcome = self.work_and_settle(&lease, &stop).await;
        match outcome {
            Outcome::Settled => Ok(()),
            Outcome::GivenBack => {
                self.ctx.progress.let_go(shard);
                Ok(())
            }
            Outcome::Failed(error @ ShardError::Submit(_)) => {
                self.ctx.progress.let_go(shard);
                self.quietly("release", shard, self.leases.release(&lease))
                    .await;
                Err(WorkError::Shard(error))
            }
            Outcome::Failed(error) => {
                self.fail(&lease, &error).await;
                Ok(())
            }
        }
    }

    async fn work_and_settle(&self, lease: &Lease, stop: &CancellationToken) -> Outcome {
        let shard = lease.shard;
        match commit::read(&self.ctx.output, self.ctx.plan.run, shard).await {
            Ok(Some(standing)) => {
                self.acknowledge(lease, standing.tally()).await;
                return Outcome::Settled;
            }
            Ok(None) => {}
            Err(error) => return Outcome::Failed(error.into()),
        }
        let kept = keeper::keep(self.leases.as_ref(), lease, self.lease_ttl);
        tokio::pin!(kept);
        let worked = tokio::select! {
            biased;
            lost = &mut kept => {
                tracing::warn!(shard, epoch = lease.epoch, ?lost, "the lease is lost: the shard is let go");
                return Outcome::GivenBack;
            }
            () = stop.cancelled() => {
                self.quietly("release", shard, self.leases.release(lease)).await;
                return Outcome::GivenBack;
            }
            worked = shard::work(&self.ctx, lease) => match worked {
                Ok(worked) => worked,
                Err(error) => return Outcome::Failed(error),
            },
        };
        // From here on the attempt is complete: the commit decides, not the lease.
        match shard::settle(&self.ctx, worked).await {
            Ok(tally) => {
                self.acknowledge(lease, tally).await;
                Outcome::Settled
            }
            Err(error) => Outcome::Failed(error),
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
    Lease(Lease),
    /// Nothing for now; ask again.
    Later,
    /// Every shard of the run is committed or given up.
    Drained,
}

/// An error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
