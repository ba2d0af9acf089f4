//! The lease store: which shards are open, who works on which, and what has been counted.
//!
//! A hint, never the truth: everything in it can be rebuilt from the plan and the commits of the
//! output store. It knows shards by their index alone and reads neither plan nor output.
//!
//! A shard is *open*, *leased*, *done* or *dead*. A lease is live while its shard is leased under
//! the same epoch and owner and its time has not run out; a lease that is not live changes nothing.
//!
//! ```text
//!            claim                acknowledge, mark_committed (from any state)
//!   open ───────────▶ leased ──────────────────────────────────────────────▶ done
//!    ▲                 │   │
//!    ├── release, fail,┘   └─ permanent failure, or the last delivery failed ──▶ dead
//!    │   time ran out         or ran out of time
//!    └── reopen, from done and dead
//! ```

use std::time::Duration;

use async_trait::async_trait;
use millrace_protocol::{
    lease::{DeadLetter, Lease},
    plan::ShardIndex,
    tally::Tally,
};

pub mod limits;
mod memory;
mod redis;
mod registry;
mod users;

pub use self::memory::MemoryLeaseStore;
pub use self::redis::{Connection as RedisConnection, RedisLeaseStore, RedisOptions, RunKey};
pub use self::registry::JobRegistry;
pub use self::users::{NamespaceUsers, UsersError};

/// Longest error that is kept with a shard, in bytes of UTF-8.
pub const ERROR_BYTES_MAX: usize = 1024;

/// What a dead letter says of a shard whose last lease ran out.
const EXPIRED_ERROR: &str =
    "the lease ran out: its worker died, hung, or was cut off from the lease store";

/// What the leases of a run are held to; the same for every worker of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseOptions {
    /// How long a lease lives without being renewed.
    pub lease_ttl: Duration,
    /// How many times a shard is handed to a worker before it is given up, the first included.
    pub deliveries_max: u64,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(30),
            deliveries_max: 3,
        }
    }
}

/// The leases and counters of one run.
///
/// Every call may be repeated when its reply was lost: a repetition changes nothing more.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// Adds open shards and marks the run as known. Shards that the store knows already, in
    /// whatever state, are left alone. An empty list says that the run has nothing to do.
    async fn push(&self, shards: &[ShardIndex]) -> Result<(), LeaseError>;

    /// Opens shards that are done or dead here although the output store, which is the truth, has no
    /// commit of them. Each is counted no longer and has all its deliveries before it. Shards in any
    /// other state are left alone: a live lease goes on.
    async fn reopen(&self, shards: &[ShardIndex]) -> Result<(), LeaseError>;

    /// Counts a shard whose commit was found in the output store, whatever its state here.
    async fn mark_committed(
        &self,
        shard: ShardIndex,
        tally: Tally,
    ) -> Result<Acknowledgement, LeaseError>;

    /// Takes the open shard with the lowest index. Leases whose time ran out are reclaimed first.
    /// `owner` names the worker; the lease's own owner token begins with it.
    async fn claim(&self, owner: &str) -> Result<Claim, LeaseError>;

    /// Gives a live lease its full time again.
    async fn renew(&self, lease: &Lease) -> Result<Renewal, LeaseError>;

    /// Ends a live lease with its shard done, and counts the shard once, in one atomic step.
    async fn acknowledge(
        &self,
        lease: &Lease,
        tally: &Tally,
    ) -> Result<Acknowledgement, LeaseError>;

    /// Ends a live lease with its shard open again; the delivery does not count against the shard.
    async fn release(&self, lease: &Lease) -> Result<(), LeaseError>;

    /// Ends a live lease after a failure: the shard is open again, or dead where the failure is
    /// `permanent` or this was its last delivery. `error` is cut to [`ERROR_BYTES_MAX`].
    async fn fail(
        &self,
        lease: &Lease,
        error: &str,
        permanent: bool,
    ) -> Result<FailOutcome, LeaseError>;

    /// The counts of this moment. A lease whose time ran out counts as leased until it is reclaimed.
    async fn snapshot(&self) -> Result<Snapshot, LeaseError>;

    /// The dead shards from index `first` on, at most `limit`, in order.
    async fn dead_letters(
        &self,
        first: ShardIndex,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LeaseError>;
}

/// What a claim gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// A shard to work on.
    Lease(Lease),
    /// Nothing is open, but some shards are leased and may come back.
    Wait,
    /// Every shard is done or dead.
    Drained,
    /// The store does not know the run, or no longer knows all of it: plan again.
    Unknown,
}

/// What a renewal gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its full time again.
    Renewed,
    /// The lease was not live: stop the work.
    Lost,
}

/// What an acknowledgement gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledgement {
    /// The shard is done and was counted by this call.
    Counted,
    /// The shard was done before, and counted then.
    AlreadyDone,
    /// The lease was not live and the shard is not done. Where the commit is known to stand in the
    /// output store, [`LeaseStore::mark_committed`] counts it.
    Lost,
}

/// What reporting a failure gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailOutcome {
    /// The shard is open again.
    Requeued,
    /// The shard is a dead letter.
    Dead,
    /// The lease was not live: nothing changed.
    Lost,
}

/// The counts of a run at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether the run was pushed to this store, and not lost since.
    pub known: bool,
    /// Shards that wait for a worker.
    pub open: u64,
    /// Shards that a worker holds.
    pub leased: u64,
    /// Shards that are committed.
    pub done: u64,
    /// Shards that were given up.
    pub dead: u64,
    /// Sums over the shards that are done.
    pub tally: Tally,
}

/// Why the lease store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No connection, no answer in time, or a server that cannot take the command for now (it is
    /// loading, out of memory, read-only after a failover). Whether the command had its effect is
    /// open: wait and repeat it.
    #[error("the lease store is unavailable")]
    Unavailable(#[source] ::redis::RedisError),
    /// The address or the credentials are wrong: waiting does not help, a person must.
    #[error("the lease store refuses us")]
    Refused(#[source] ::redis::RedisError),
    /// The data has another shape than ours: something else wrote below the run's keys.
    #[error("the lease store holds data that is not ours")]
    Corrupt(#[source] ::redis::RedisError),
    /// The server failed to run a script: a fault of this build or a server too old for it.
    #[error("the lease store could not run a script")]
    Script(#[source] ::redis::RedisError),
}

impl LeaseError {
    /// Whether the same call may succeed after a while.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, LeaseError::Unavailable(_))
    }
}

/// The error as it is kept: at most [`ERROR_BYTES_MAX`] bytes, never cut inside a character.
fn cut_error(error: &str) -> &str {
    &error[..error.floor_char_boundary(ERROR_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_cut_between_characters() {
        assert_eq!(cut_error("short"), "short");
        let long = format!("x{}", "é".repeat(ERROR_BYTES_MAX));
        let cut = cut_error(&long);
        assert_eq!(cut.len(), ERROR_BYTES_MAX - 1);
        assert!(long.starts_with(cut));
    }
}
