//! How far a run is, for whoever shows it. A hint: totals come from the commits.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use millrace_protocol::commit::Commit;
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::tally::Tally;
use tokio::sync::Notify;

use crate::metrics::Metrics;

/// Counts of one run, shared by all its shards.
#[derive(Debug, Default)]
pub struct Progress {
    counts: Mutex<Counts>,
    /// Told of each change.
    changed: Notify,
    /// What this process counts over all its runs.
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Counts {
    shards_total: u32,
    /// A shard may be found committed more than once: when its acknowledgement was lost, it is
    /// claimed again.
    shards_committed: BTreeSet<ShardIndex>,
    shards_failed: u32,
    committed: Tally,
    /// Rows of shards in hand; they count again from zero if the shard is given up.
    in_hand: HashMap<ShardIndex, InHand>,
    /// Rows and tokens that this process had answered, whether or not they were committed.
    answered: Tally,
}

#[derive(Debug, Default)]
struct InHand {
    rows_begun: u64,
    answered: Tally,
}

/// A look at a run's counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// Shards of the plan.
    pub shards_total: u32,
    /// Shards with a commit.
    pub shards_committed: u32,
    /// Shards that were given up.
    pub shards_failed: u32,
    /// Rows and tokens of committed shards.
    pub committed: Tally,
    /// Rows and tokens of committed shards and of shards in hand.
    pub done: Tally,
    /// Rows of committed shards, and those that were read of shards in hand. Bad rows are done before the others of
    /// their window are asked about, so that a share of rows that failed is one of these.
    pub rows_begun: u64,
    /// Rows and tokens that this process had answered so far: what rates are computed from.
    pub answered: Tally,
}

impl Progress {
    /// The progress of one run of a process that counts all of them in `metrics`.
    pub fn counted_in(metrics: Metrics) -> Self {
        Self {
            counts: Mutex::default(),
            changed: Notify::new(),
            metrics,
        }
    }

    /// What this process counts over all its runs.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Starts the count: `committed` is what earlier processes left.
    pub fn start(&self, shards_total: u32, committed: &[Commit]) {
        let mut counts = self.lock();
        counts.shards_total = shards_total;
        counts.shards_committed = committed.iter().map(|commit| commit.shard).collect();
        counts.committed = committed.iter().map(Commit::tally).sum();
    }

    /// Rows of a shard in hand were read, and are asked about unless they are bad.
    pub fn begun(&self, shard: ShardIndex, rows: u64) {
        self.lock().in_hand.entry(shard).or_default().rows_begun += rows;
    }

    /// Rows of a shard in hand were answered.
    pub fn answered(&self, shard: ShardIndex, tally: Tally) {
        self.metrics.note_answered(tally);
        let mut counts = self.lock();
        counts.answered += tally;
        counts.in_hand.entry(shard).or_default().answered += tally;
        self.changed.notify_one();
    }

    /// A shard in hand was let go without a commit of ours.
    pub fn let_go(&self, shard: ShardIndex) {
        self.lock().in_hand.remove(&shard);
    }

    /// A shard has a commit with these counts.
    pub fn committed(&self, shard: ShardIndex, tally: Tally) {
        let mut counts = self.lock();
        counts.in_hand.remove(&shard);
        if counts.shards_committed.insert(shard) {
            counts.committed += tally;
        }
        self.changed.notify_one();
    }

    /// A shard was given up.
    pub fn failed(&self, shard: ShardIndex) {
        let mut counts = self.lock();
        counts.in_hand.remove(&shard);
        counts.shards_failed += 1;
        self.changed.notify_one();
    }

    /// Waits for rows that were answered, or a shard that was committed or given up, since the last wait. Of two
    /// who wait one is told.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The counts now.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let counts = self.lock();
        let in_hand = counts.in_hand.values();
        let rows_begun: u64 = in_hand.clone().map(|shard| shard.rows_begun).sum();
        let in_hand: Tally = in_hand.map(|shard| shard.answered).sum();
        ProgressSnapshot {
            shards_total: counts.shards_total,
            shards_committed: counts.shards_committed.len() as u32,
            shards_failed: counts.shards_failed,
            committed: counts.committed,
            done: counts.committed + in_hand,
            rows_begun: counts.committed.rows.total() + rows_begun,
            answered: counts.answered,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        // The counts are plain numbers: a panic elsewhere cannot leave them half changed.
        self.counts
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_whose_acknowledgement_was_lost_counts_once() {
        let progress = Progress::default();
        progress.start(2, &[]);
        let tally = Tally {
            tokens: 7,
            ..Tally::default()
        };
        for _ in 0..2 {
            progress.committed(1, tally);
            let seen = progress.snapshot();
            assert_eq!((seen.shards_committed, seen.done), (1, tally));
        }
    }
}
