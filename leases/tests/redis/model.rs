//! Random histories over a few shards, compared step by step with a reference that is too simple to
//! be wrong: one record per shard, searched from end to end.

use std::collections::BTreeMap;
use std::time::Duration;

use millrace_leases::{Acknowledgement, Claim, FailOutcome, Renewal, Snapshot};
use millrace_protocol::lease::{DeadLetter, Lease};
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::tally::Tally;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::subject::{OPTIONS, OnRedis, Subject, tally};
use millrace_e2e::redis_server::RedisServer;

/// One call, or a stretch of time. A lease is picked among all that were ever given.
#[derive(Debug, Clone)]
enum Step {
    Push(Vec<ShardIndex>),
    Reopen(Vec<ShardIndex>),
    MarkCommitted(ShardIndex),
    Claim(u8),
    Renew(Index),
    Acknowledge(Index),
    Release(Index),
    Fail(Index, bool),
    /// In sevenths of an hour: no sum of them comes near a TTL of a whole number of hours, so a
    /// slow machine cannot tip a decision.
    Advance(u8),
}

const TIME_STEP: Duration = Duration::from_secs(3600 * 2 / 7);

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => prop::collection::vec(0..5u32, 0..5).prop_map(Step::Push),
        1 => prop::collection::vec(0..5u32, 0..5).prop_map(Step::Reopen),
        1 => (0..5u32).prop_map(Step::MarkCommitted),
        8 => (0..3u8).prop_map(Step::Claim),
        3 => any::<Index>().prop_map(Step::Renew),
        2 => any::<Index>().prop_map(Step::Acknowledge),
        2 => any::<Index>().prop_map(Step::Release),
        3 => (any::<Index>(), prop::bool::weighted(0.2)).prop_map(|(i, p)| Step::Fail(i, p)),
        3 => (1..5u8).prop_map(Step::Advance),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_history_of_the_memory_store_agrees_with_the_reference(steps in steps()) {
        crate::subject::in_memory(async |subject| check(subject, &steps).await);
    }
}

#[test]
fn any_history_of_the_redis_store_agrees_with_the_reference() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(48)
    };
    proptest!(config, |(steps in steps())| {
        server.command::<()>(&["FLUSHALL"]);
        runtime.block_on(async {
            check(&OnRedis::new(&server, crate::subject::run()), &steps).await;
        });
    });
}

#[test]
fn a_store_that_gave_a_shard_twice_would_be_caught() {
    let caught = std::panic::catch_unwind(|| {
        let mut witness = Witness::default();
        let lease = |epoch| Lease {
            shard: 0,
            epoch,
            owner: "a".into(),
        };
        witness.given(&lease(1), Duration::ZERO);
        witness.given(&lease(2), OPTIONS.lease_ttl / 2);
    });
    assert!(caught.is_err());
}

/// Runs a history, comparing every reply and, after each step, all that can be seen.
async fn check(subject: &dyn Subject, steps: &[Step]) {
    let leases = subject.leases();
    let mut model = Model::default();
    let mut witness = Witness::default();
    let mut given: Vec<Lease> = Vec::new();
    for step in steps {
        let pick =
            |index: &Index| (!given.is_empty()).then(|| given[index.index(given.len())].clone());
        match step {
            Step::Push(shards) => {
                leases.push(shards).await.unwrap();
                model.push(shards);
            }
            Step::Reopen(shards) => {
                leases.reopen(shards).await.unwrap();
                for shard in model.reopen(shards) {
                    witness.reopened(shard);
                }
            }
            Step::MarkCommitted(shard) => {
                let reply = leases.mark_committed(*shard, tally(*shard)).await.unwrap();
                assert_eq!(reply, model.finish(*shard));
                witness.ended(*shard);
                witness.counted(*shard, reply);
            }
            Step::Claim(worker) => {
                let claim = leases.claim(&format!("worker-{worker}")).await.unwrap();
                assert_eq!(claim, model.claim(&claim));
                if let Claim::Lease(lease) = claim {
                    witness.given(&lease, model.now);
                    given.push(lease);
                }
            }
            Step::Renew(index) => {
                let Some(lease) = pick(index) else { continue };
                let reply = leases.renew(&lease).await.unwrap();
                assert_eq!(reply, model.renew(&lease));
                if reply == Renewal::Renewed {
                    witness.renewed(&lease, model.now);
                }
            }
            Step::Acknowledge(index) => {
                let Some(lease) = pick(index) else { continue };
                let reply = leases
                    .acknowledge(&lease, &tally(lease.shard))
                    .await
                    .unwrap();
                assert_eq!(reply, model.acknowledge(&lease));
                witness.counted(lease.shard, reply);
            }
            Step::Release(index) => {
                let Some(lease) = pick(index) else { continue };
                leases.release(&lease).await.unwrap();
                if model.release(&lease) {
                    witness.ended(lease.shard);
                }
            }
            Step::Fail(index, permanent) => {
                let Some(lease) = pick(index) else { continue };
                let error = format!("failed in epoch {}", lease.epoch);
                let reply = leases.fail(&lease, &error, *permanent).await.unwrap();
                assert_eq!(reply, model.fail(&lease, &error, *permanent));
                if reply != FailOutcome::Lost {
                    witness.ended(lease.shard);
                }
            }
            Step::Advance(times) => {
                subject.advance(TIME_STEP * u32::from(*times)).await;
                model.now += TIME_STEP * u32::from(*times);
            }
        }
        assert_eq!(
            leases.snapshot().await.unwrap(),
            model.snapshot(),
            "after {step:?}"
        );
        let letters = leases.dead_letters(0, 10).await.unwrap();
        let seen: Vec<_> = letters.iter().map(|l| (l.shard, l.deliveries)).collect();
        let expected = model.dead_letters();
        assert_eq!(
            seen,
            expected
                .iter()
                .map(|l| (l.shard, l.deliveries))
                .collect::<Vec<_>>()
        );
        for (letter, expected) in letters.iter().zip(expected) {
            assert!(
                letter.error.contains(&expected.error),
                "{letter:?} is not {expected:?}"
            );
        }
    }
}

/// Judges the replies alone, without knowing how a store works.
#[derive(Default)]
struct Witness {
    /// The last lease given for a shard, and until when it is live if nothing ended it.
    live: BTreeMap<ShardIndex, (Lease, Option<Duration>)>,
    counted: BTreeMap<ShardIndex, u32>,
}

impl Witness {
    fn given(&mut self, lease: &Lease, now: Duration) {
        let until = Some(now + OPTIONS.lease_ttl);
        if let Some((before, until)) = self.live.insert(lease.shard, (lease.clone(), until)) {
            assert!(
                before.epoch < lease.epoch,
                "epochs grow: {before:?}, {lease:?}"
            );
            assert!(
                until.is_none_or(|until| until <= now),
                "two live leases: {before:?}, {lease:?}"
            );
        }
    }

    fn renewed(&mut self, lease: &Lease, now: Duration) {
        let (last, until) = self.live.get_mut(&lease.shard).expect("it was given");
        assert_eq!(last, lease, "only the last lease can be renewed");
        *until = Some(now + OPTIONS.lease_ttl);
    }

    fn ended(&mut self, shard: ShardIndex) {
        if let Some((_, until)) = self.live.get_mut(&shard) {
            *until = None;
        }
    }

    fn reopened(&mut self, shard: ShardIndex) {
        self.ended(shard);
        self.counted.remove(&shard);
    }

    fn counted(&mut self, shard: ShardIndex, reply: Acknowledgement) {
        if reply == Acknowledgement::Counted {
            let times = self.counted.entry(shard).or_default();
            *times += 1;
            assert_eq!(*times, 1, "shard {shard} is counted once");
        }
    }
}

/// The reference.
#[derive(Default)]
struct Model {
    known: bool,
    now: Duration,
    shards: BTreeMap<ShardIndex, Record>,
}

struct Record {
    state: State,
    epoch: u64,
    deliveries: u64,
}

#[derive(PartialEq)]
enum State {
    Open,
    Leased { owner: String, until: Duration },
    Done,
    Dead { error: String },
}

impl Model {
    fn push(&mut self, shards: &[ShardIndex]) {
        self.known = true;
        for shard in shards {
            let new = Record {
                state: State::Open,
                epoch: 0,
                deliveries: 0,
            };
            self.shards.entry(*shard).or_insert(new);
        }
    }

    /// The shards that were done or dead and are open now.
    fn reopen(&mut self, shards: &[ShardIndex]) -> Vec<ShardIndex> {
        let mut reopened = Vec::new();
        for shard in shards {
            let Some(record) = self.shards.get_mut(shard) else {
                continue;
            };
            if matches!(record.state, State::Done | State::Dead { .. }) {
                record.state = State::Open;
                record.deliveries = 0;
                reopened.push(*shard);
            }
        }
        reopened
    }

    fn finish(&mut self, shard: ShardIndex) -> Acknowledgement {
        let new = Record {
            state: State::Open,
            epoch: 0,
            deliveries: 0,
        };
        let record = self.shards.entry(shard).or_insert(new);
        match std::mem::replace(&mut record.state, State::Done) {
            State::Done => Acknowledgement::AlreadyDone,
            _ => Acknowledgement::Counted,
        }
    }

    /// What a claim must give. The owner token of a lease is the store's choice, so it is taken
    /// from what the store gave.
    fn claim(&mut self, given: &Claim) -> Claim {
        let now = self.now;
        for record in self.shards.values_mut() {
            if matches!(&record.state, State::Leased { until, .. } if *until <= now) {
                record.state = if record.deliveries < OPTIONS.deliveries_max {
                    State::Open
                } else {
                    State::Dead {
                        error: "ran out".into(),
                    }
                };
            }
        }
        let owner = match given {
            Claim::Lease(lease) => lease.owner.clone(),
            _ => "nobody".into(),
        };
        for (shard, record) in &mut self.shards {
            if record.state == State::Open {
                record.epoch += 1;
                record.deliveries += 1;
                record.state = State::Leased {
                    owner: owner.clone(),
                    until: now + OPTIONS.lease_ttl,
                };
                return Claim::Lease(Lease {
                    shard: *shard,
                    epoch: record.epoch,
                    owner,
                });
            }
        }
        let is_leased = |record: &Record| matches!(record.state, State::Leased { .. });
        match self.known {
            false => Claim::Unknown,
            true if self.shards.values().any(is_leased) => Claim::Wait,
            true => Claim::Drained,
        }
    }

    /// The record of a shard, if the lease on it is live.
    fn live(&mut self, lease: &Lease) -> Option<&mut Record> {
        let now = self.now;
        let record = self.shards.get_mut(&lease.shard)?;
        let is_live = record.epoch == lease.epoch
            && matches!(&record.state,
                State::Leased { owner, until } if *owner == lease.owner && now < *until);
        is_live.then_some(record)
    }

    fn renew(&mut self, lease: &Lease) -> Renewal {
        let until = self.now + OPTIONS.lease_ttl;
        let Some(record) = self.live(lease) else {
            return Renewal::Lost;
        };
        record.state = State::Leased {
            owner: lease.owner.clone(),
            until,
        };
        Renewal::Renewed
    }

    fn acknowledge(&mut self, lease: &Lease) -> Acknowledgement {
        if self
            .shards
            .get(&lease.shard)
            .is_some_and(|record| record.state == State::Done)
        {
            return Acknowledgement::AlreadyDone;
        }
        match self.live(lease) {
            Some(_) => self.finish(lease.shard),
            None => Acknowledgement::Lost,
        }
    }

    fn release(&mut self, lease: &Lease) -> bool {
        let Some(record) = self.live(lease) else {
            return false;
        };
        record.state = State::Open;
        record.deliveries -= 1;
        true
    }

    fn fail(&mut self, lease: &Lease, error: &str, permanent: bool) -> FailOutcome {
        let Some(record) = self.live(lease) else {
            return FailOutcome::Lost;
        };
        if permanent || record.deliveries >= OPTIONS.deliveries_max {
            record.state = State::Dead {
                error: error.to_owned(),
            };
            FailOutcome::Dead
        } else {
            record.state = State::Open;
            FailOutcome::Requeued
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            known: self.known,
            ..Snapshot::default()
        };
        for (shard, record) in &self.shards {
            match record.state {
                State::Open => snapshot.open += 1,
                State::Leased { .. } => snapshot.leased += 1,
                State::Done => {
                    snapshot.done += 1;
                    let before: Tally = snapshot.tally;
                    snapshot.tally = before + tally(*shard);
                }
                State::Dead { .. } => snapshot.dead += 1,
            }
        }
        snapshot
    }

    fn dead_letters(&self) -> Vec<DeadLetter> {
        let letter = |(shard, record): (&ShardIndex, &Record)| match &record.state {
            State::Dead { error } => Some(DeadLetter {
                shard: *shard,
                deliveries: record.deliveries,
                error: error.clone(),
            }),
            State::Open | State::Leased { .. } | State::Done => None,
        };
        self.shards.iter().filter_map(letter).collect()
    }
}
