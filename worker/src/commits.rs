//! The commits of a run: what is done, whatever the lease store says.

use futures::{StreamExt, TryStreamExt};
use millrace_protocol::commit::Commit;
use millrace_protocol::layout;
use millrace_protocol::plan::{Plan, RunNumber, ShardIndex};
use object_store::ObjectStore;

use crate::store::{Location, StoreError};
use crate::work::commit::{self, CommitError};
use millrace_leases::{LeaseError, LeaseStore};

/// Records read at a time; each is well below a kilobyte.
const READS_MAX: usize = 32;

/// Why the commits of a run could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CommitsError {
    /// The store failed.
    #[error("the commits could not be listed")]
    List(#[source] StoreError),
    /// A record failed.
    #[error("a commit could not be read")]
    Read(#[from] CommitError),
}

/// All commits of a run, by shard.
pub async fn list(output: &Location, run: RunNumber) -> Result<Vec<Commit>, CommitsError> {
    list_where(output, run, |_| true).await
}

/// The commits of those shards of a run that are `wanted`, by shard.
pub async fn list_where(
    output: &Location,
    run: RunNumber,
    wanted: impl Fn(ShardIndex) -> bool,
) -> Result<Vec<Commit>, CommitsError> {
    let folder = output.below(&layout::commits(run));
    let failed = |source| CommitsError::List(StoreError::at(&folder, source));
    let listed: Vec<_> = output
        .store
        .list(Some(&folder))
        .try_collect()
        .await
        .map_err(failed)?;
    let names = listed
        .iter()
        .filter_map(|object| object.location.filename());
    let shards: Vec<ShardIndex> = names
        .filter_map(layout::shard_of_commit)
        .filter(|shard| wanted(*shard))
        .collect();
    let mut commits: Vec<Commit> = futures::stream::iter(shards)
        .map(|shard| commit::read(output, run, shard))
        .buffer_unordered(READS_MAX)
        .try_filter_map(|commit| async move { Ok(commit) })
        .try_collect()
        .await?;
    commits.sort_unstable_by_key(|commit| commit.shard);
    Ok(commits)
}

/// Tells a lease store everything that plan and commits know. Idempotent. Shards of duplicates are queued
/// by finish alone, which knows when the others have ended.
pub async fn fill(
    leases: &dyn LeaseStore,
    plan: &Plan,
    committed: &[Commit],
) -> Result<(), LeaseError> {
    // Committed shards first: a shard that is pushed while it looks open may be claimed at once.
    for commit in committed {
        leases.mark_committed(commit.shard, commit.tally()).await?;
    }
    leases.push(&open(plan, committed)).await
}

/// As [`fill`], and opens again what the lease store holds for done or given up although it has no
/// commit: a run that begins once more gives every open shard all its deliveries.
pub async fn fill_anew(
    leases: &dyn LeaseStore,
    plan: &Plan,
    committed: &[Commit],
) -> Result<(), LeaseError> {
    fill(leases, plan, committed).await?;
    // Of duplicates those alone are opened that were queued before.
    leases.reopen(&without_commit(plan, committed)).await
}

/// Queues shards that finish misses.
pub async fn queue(leases: &dyn LeaseStore, missing: &[ShardIndex]) -> Result<(), LeaseError> {
    leases.push(missing).await?;
    leases.reopen(missing).await
}

/// The shards without a commit, but for those of duplicates.
fn open(plan: &Plan, committed: &[Commit]) -> Vec<ShardIndex> {
    let mut open = without_commit(plan, committed);
    open.retain(|shard| !plan.shards[*shard as usize].is_of_duplicates());
    open
}

fn without_commit(plan: &Plan, committed: &[Commit]) -> Vec<ShardIndex> {
    let mut done = committed.iter().map(|commit| commit.shard).peekable();
    let shards = 0..plan.shards.len() as ShardIndex;
    shards
        .filter(|shard| done.next_if_eq(shard).is_none())
        .collect()
}
