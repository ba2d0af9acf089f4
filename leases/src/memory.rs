//! The lease store of a local run: one process, nothing outlives it.
//!
//! The board is a pure state machine that is told the time; the store around it reads the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use millrace_protocol::{
    lease::{DeadLetter, Epoch, Lease},
    plan::ShardIndex,
    tally::Tally,
};
use tokio::time::Instant;

use super::{
    Acknowledgement, Claim, EXPIRED_ERROR, FailOutcome, LeaseError, LeaseOptions, LeaseStore,
    Renewal, Snapshot, cut_error,
};

/// Leases and counters in this process's memory, by its monotonic clock. Its calls never fail.
#[derive(Debug)]
pub struct MemoryLeaseStore {
    options: LeaseOptions,
    board: Mutex<Board>,
}

impl MemoryLeaseStore {
    /// An empty store: it knows no run until shards are pushed.
    pub fn new(options: LeaseOptions) -> Self {
        Self {
            options,
            board: Mutex::default(),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // A panic while the lock is held is a bug that must not be papered over.
        self.board.lock().expect("no holder of the board panics")
    }
}

#[async_trait]
impl LeaseStore for MemoryLeaseStore {
    async fn push(&self, shards: &[ShardIndex]) -> Result<(), LeaseError> {
        self.board().push(shards);
        Ok(())
    }

    async fn reopen(&self, shards: &[ShardIndex]) -> Result<(), LeaseError> {
        self.board().reopen(shards);
        Ok(())
    }

    async fn mark_committed(
        &self,
        shard: ShardIndex,
        tally: Tally,
    ) -> Result<Acknowledgement, LeaseError> {
        Ok(self.board().finish(shard, tally))
    }

    async fn claim(&self, owner: &str) -> Result<Claim, LeaseError> {
        Ok(self.board().claim(owner, Instant::now(), self.options))
    }

    async fn renew(&self, lease: &Lease) -> Result<Renewal, LeaseError> {
        Ok(self
            .board()
            .renew(lease, Instant::now(), self.options.lease_ttl))
    }

    async fn acknowledge(
        &self,
        lease: &Lease,
        tally: &Tally,
    ) -> Result<Acknowledgement, LeaseError> {
        Ok(self.board().acknowledge(lease, *tally, Instant::now()))
    }

    async fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.board().release(lease, Instant::now());
        Ok(())
    }

    async fn fail(
        &self,
        lease: &Lease,
        error: &str,
        permanent: bool,
    ) -> Result<FailOutcome, LeaseError> {
        let deliveries_max = if permanent {
            0
        } else {
            self.options.deliveries_max
        };
        Ok(self
            .board()
            .fail(lease, cut_error(error), Instant::now(), deliveries_max))
    }

    async fn snapshot(&self) -> Result<Snapshot, LeaseError> {
        Ok(self.board().snapshot())
    }

    async fn dead_letters(
        &self,
        first: ShardIndex,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LeaseError> {
        let board = self.board();
        let letters = board.dead.range(first..).map(|(_, letter)| letter);
        Ok(letters.take(limit).cloned().collect())
    }
}

/// All shards of the run, each in exactly one of `open`, `leased`, `done` and `dead`.
#[derive(Debug, Default)]
struct Board {
    known: bool,
    open: BTreeSet<ShardIndex>,
    leased: BTreeMap<ShardIndex, Held>,
    done: BTreeMap<ShardIndex, Done>,
    dead: BTreeMap<ShardIndex, DeadLetter>,
    /// What is remembered of shards that were delivered and are not done.
    histories: BTreeMap<ShardIndex, History>,
}

/// What is remembered of a shard that is done, should it be opened again.
#[derive(Debug)]
struct Done {
    tally: Tally,
    /// Epoch of its last lease; an older lease must not come alive again.
    epoch: Epoch,
}

/// The current lease of a shard.
#[derive(Debug)]
struct Held {
    owner: String,
    expires: Instant,
}

/// What became of a shard's deliveries so far.
#[derive(Debug, Default)]
struct History {
    epoch: Epoch,
    /// Deliveries that count against the shard.
    deliveries: u64,
}

impl Board {
    fn push(&mut self, shards: &[ShardIndex]) {
        self.known = true;
        for shard in shards {
            let is_new = !self.leased.contains_key(shard)
                && !self.done.contains_key(shard)
                && !self.dead.contains_key(shard);
            if is_new {
                self.open.insert(*shard);
            }
        }
    }

    fn reopen(&mut self, shards: &[ShardIndex]) {
        for &shard in shards {
            if let Some(Done { tally: _, epoch }) = self.done.remove(&shard) {
                self.history(shard).epoch = epoch;
            } else if self.dead.remove(&shard).is_some() {
                self.history(shard).deliveries = 0;
            } else {
                continue;
            }
            self.open.insert(shard);
        }
    }

    fn claim(&mut self, owner: &str, now: Instant, options: LeaseOptions) -> Claim {
        self.reclaim(now, options.deliveries_max);
        if let Some(shard) = self.open.pop_first() {
            let history = self.histories.entry(shard).or_default();
            history.epoch += 1;
            history.deliveries += 1;
            let held = Held {
                owner: owner.to_owned(),
                expires: now + options.lease_ttl,
            };
            self.leased.insert(shard, held);
            return Claim::Lease(Lease {
                shard,
                epoch: history.epoch,
                owner: owner.to_owned(),
            });
        }
        match (self.known, self.leased.is_empty()) {
            (false, _) => Claim::Unknown,
            (true, false) => Claim::Wait,
            (true, true) => Claim::Drained,
        }
    }

    fn renew(&mut self, lease: &Lease, now: Instant, lease_ttl: Duration) -> Renewal {
        if !self.is_live(lease, now) {
            return Renewal::Lost;
        }
        if let Some(held) = self.leased.get_mut(&lease.shard) {
            held.expires = now + lease_ttl;
        }
        Renewal::Renewed
    }

    fn acknowledge(&mut self, lease: &Lease, tally: Tally, now: Instant) -> Acknowledgement {
        if self.is_live(lease, now) || self.done.contains_key(&lease.shard) {
            self.finish(lease.shard, tally)
        } else {
            Acknowledgement::Lost
        }
    }

    fn release(&mut self, lease: &Lease, now: Instant) {
        if self.is_live(lease, now) {
            self.leased.remove(&lease.shard);
            self.open.insert(lease.shard);
            self.history(lease.shard).deliveries -= 1;
        }
    }

    fn fail(
        &mut self,
        lease: &Lease,
        error: &str,
        now: Instant,
        deliveries_max: u64,
    ) -> FailOutcome {
        if !self.is_live(lease, now) {
            return FailOutcome::Lost;
        }
        self.give_back(lease.shard, error, deliveries_max)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            known: self.known,
            open: self.open.len() as u64,
            leased: self.leased.len() as u64,
            done: self.done.len() as u64,
            dead: self.dead.len() as u64,
            tally: self.done.values().map(|done| done.tally).sum(),
        }
    }

    /// Makes a shard done from whatever state, and counts it the first time.
    fn finish(&mut self, shard: ShardIndex, tally: Tally) -> Acknowledgement {
        if self.done.contains_key(&shard) {
            return Acknowledgement::AlreadyDone;
        }
        self.open.remove(&shard);
        self.leased.remove(&shard);
        self.dead.remove(&shard);
        let history = self.histories.remove(&shard).unwrap_or_default();
        let epoch = history.epoch;
        self.done.insert(shard, Done { tally, epoch });
        Acknowledgement::Counted
    }

    /// Takes back every lease whose time ran out.
    fn reclaim(&mut self, now: Instant, deliveries_max: u64) {
        let expired: Vec<ShardIndex> = self
            .leased
            .iter()
            .filter(|(_, held)| held.expires <= now)
            .map(|(s, _)| *s)
            .collect();
        for shard in expired {
            self.give_back(shard, EXPIRED_ERROR, deliveries_max);
        }
    }

    /// Ends a delivery that failed: the shard is open again, or dead after its last delivery.
    fn give_back(&mut self, shard: ShardIndex, error: &str, deliveries_max: u64) -> FailOutcome {
        self.leased.remove(&shard);
        let deliveries = self.history(shard).deliveries;
        if deliveries < deliveries_max {
            self.open.insert(shard);
            FailOutcome::Requeued
        } else {
            self.dead.insert(
                shard,
                DeadLetter {
                    shard,
                    deliveries,
                    error: error.to_owned(),
                },
            );
            FailOutcome::Dead
        }
    }

    fn is_live(&self, lease: &Lease, now: Instant) -> bool {
        let epoch = self
            .histories
            .get(&lease.shard)
            .map(|history| history.epoch);
        self.leased.get(&lease.shard).is_some_and(|held| {
            held.owner == lease.owner && epoch == Some(lease.epoch) && now < held.expires
        })
    }

    fn history(&mut self, shard: ShardIndex) -> &mut History {
        self.histories.entry(shard).or_default()
    }
}
