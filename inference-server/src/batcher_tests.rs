//! The batcher's promises, over arbitrary histories of pushes, takes, withdrawals and time.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

const TOKENS_MAX: usize = 64;
const ITEMS_MAX: usize = 8;
const WAIT: Duration = Duration::from_millis(10);

fn limits() -> Limits {
    Limits {
        batch_tokens_max: vec![TOKENS_MAX, TOKENS_MAX / 2],
        batch_items_max: ITEMS_MAX,
        wait_max: WAIT,
    }
}

/// Items are told apart by their payload, which counts them.
struct Scene {
    start: Instant,
    batcher: Batcher<u64>,
    pushed: u64,
}

impl Scene {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            batcher: Batcher::new(limits()),
            pushed: 0,
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn push(&mut self, priority: Priority, tokens: usize, ms: u64) {
        self.push_to(0, priority, tokens, ms, 1_000_000);
    }

    fn push_to(&mut self, model: usize, priority: Priority, tokens: usize, ms: u64, live_ms: u64) {
        let (arrived, deadline) = (self.at(ms), self.at(ms + live_ms));
        let payload = self.pushed;
        self.pushed += 1;
        self.batcher.push(Item {
            model,
            priority,
            tokens,
            arrived,
            deadline,
            payload,
        });
    }

    fn take(&mut self, ms: u64, demand: Demand) -> Vec<usize> {
        let now = self.at(ms);
        let batch = self.batcher.take_ready(now, demand);
        batch.map_or(Vec::new(), |batch| {
            batch.items.iter().map(|item| item.tokens).collect()
        })
    }
}

#[test]
fn a_lone_online_item_waits_for_company_but_not_for_ever() {
    let mut scene = Scene::new();
    scene.push(Priority::Online, 5, 0);
    assert!(scene.take(9, Demand::Idle).is_empty());
    assert_eq!(scene.batcher.next_wake(true), Some(scene.at(10)));
    assert_eq!(scene.take(10, Demand::Idle), [5]);
}

#[test]
fn an_online_item_does_not_wait_while_a_job_could_use_the_engine() {
    let mut scene = Scene::new();
    scene.push(Priority::Batch, 7, 0);
    scene.push(Priority::Online, 5, 0);
    assert_eq!(scene.take(0, Demand::Idle), [5]);
    assert_eq!(scene.take(0, Demand::Idle), [7]);
}

#[test]
fn a_busy_engine_fetches_only_full_batches() {
    let mut scene = Scene::new();
    for _ in 0..ITEMS_MAX - 1 {
        scene.push(Priority::Batch, 2, 0);
    }
    assert!(scene.take(0, Demand::Ahead).is_empty());
    scene.push(Priority::Batch, 2, 0);
    assert_eq!(scene.take(0, Demand::Ahead), [2; ITEMS_MAX]);
}

#[test]
fn the_oldest_item_takes_the_nearest_lengths_along() {
    let mut scene = Scene::new();
    for tokens in [10, 60, 11, 50, 9, 10, 3] {
        scene.push(Priority::Batch, tokens, 0);
    }
    // 11 · 5 fits into 64 tokens, and 3 is nearer to 10 than 50 is.
    assert_eq!(scene.take(0, Demand::Idle), [10, 10, 11, 9, 3]);
    assert_eq!(scene.take(0, Demand::Idle), [60]);
    assert_eq!(scene.take(0, Demand::Idle), [50]);
}

#[test]
fn an_item_above_the_budget_runs_alone_and_blocks_nothing() {
    let mut scene = Scene::new();
    for tokens in [1000, 4, 4] {
        scene.push(Priority::Batch, tokens, 0);
    }
    assert_eq!(scene.take(0, Demand::Idle), [1000]);
    assert_eq!(scene.take(0, Demand::Idle), [4, 4]);
}

#[test]
fn an_expired_item_leaves_at_its_deadline() {
    let mut scene = Scene::new();
    scene.push_to(0, Priority::Online, 5, 0, 100);
    scene.push_to(0, Priority::Batch, 6, 0, 200);
    assert_eq!(scene.batcher.next_wake(false), Some(scene.at(100)));
    let (now, later) = (scene.at(100), scene.at(200));
    let expired = scene.batcher.take_expired(now);
    assert_eq!(
        expired.iter().map(|item| item.tokens).collect::<Vec<_>>(),
        [5]
    );
    assert_eq!(scene.batcher.next_wake(false), Some(later));
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        model: usize,
        online: bool,
        tokens: usize,
        live_ms: u64,
    },
    Take {
        ahead: bool,
    },
    Withdraw {
        every: u64,
    },
    Pass {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_usize, any::<bool>(), 1..100_usize, 1..200_u64).prop_map(
            |(model, online, tokens, live_ms)| Step::Push { model, online, tokens, live_ms }
        ),
        3 => any::<bool>().prop_map(|ahead| Step::Take { ahead }),
        1 => (2..9_u64).prop_map(|every| Step::Withdraw { every }),
        2 => (0..40_u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// What the history so far allows and forbids.
#[derive(Default)]
struct Witness {
    waiting: HashMap<u64, Item<u64>>,
}

impl Witness {
    fn leaves(&mut self, item: &Item<u64>) {
        let known = self.waiting.remove(&item.payload);
        assert_eq!(
            known.as_ref(),
            Some(item),
            "an item leaves exactly once and as it came"
        );
    }

    fn check(&mut self, batch: &Batch<u64>) {
        let limits = limits();
        let waiting = |priority: Priority| {
            self.waiting
                .values()
                .filter(move |item| item.priority == priority)
        };
        if batch.priority == Priority::Batch {
            assert_eq!(
                waiting(Priority::Online).count(),
                0,
                "online runs before batch"
            );
        }
        let oldest = waiting(batch.priority).map(|item| item.payload).min();
        assert_eq!(
            oldest,
            Some(batch.items[0].payload),
            "the oldest goes first"
        );
        assert!(batch.items.len() <= limits.batch_items_max);
        let longest = batch.items.iter().map(|item| item.tokens).max().unwrap();
        let padded = longest * batch.items.len();
        let tokens_max = limits.batch_tokens_max[batch.model];
        assert!(
            batch.items.len() == 1 || padded <= tokens_max,
            "{padded} tokens"
        );
        for item in &batch.items {
            assert_eq!((item.model, item.priority), (batch.model, batch.priority));
            self.leaves(item);
        }
    }
}

proptest! {
    #[test]
    fn every_item_leaves_exactly_once_within_budget_and_in_order(
        steps in prop::collection::vec(step(), 1..200)
    ) {
        let mut scene = Scene::new();
        let mut witness = Witness::default();
        let mut now_ms = 0;
        for step in steps {
            let now = scene.at(now_ms);
            match step {
                Step::Push { model, online, tokens, live_ms } => {
                    let priority = if online { Priority::Online } else { Priority::Batch };
                    let (arrived, deadline) = (now, scene.at(now_ms + live_ms));
                    let payload = scene.pushed;
                    witness.waiting.insert(
                        payload,
                        Item { model, priority, tokens, arrived, deadline, payload },
                    );
                    scene.push_to(model, priority, tokens, now_ms, live_ms);
                }
                Step::Take { ahead } => {
                    let demand = if ahead { Demand::Ahead } else { Demand::Idle };
                    if let Some(batch) = scene.batcher.take_ready(now, demand) {
                        witness.check(&batch);
                    }
                }
                Step::Withdraw { every } => {
                    let gone = scene.batcher.take_where(|item| item.payload % every == 0);
                    gone.iter().for_each(|item| witness.leaves(item));
                    prop_assert!(witness.waiting.keys().all(|payload| payload % every != 0));
                }
                Step::Pass { ms } => now_ms += ms,
            }
            let now = scene.at(now_ms);
            let expired = scene.batcher.take_expired(now);
            expired.iter().for_each(|item| witness.leaves(item));
            prop_assert!(witness.waiting.values().all(|item| item.deadline > now));
            prop_assert_eq!(scene.batcher.len(), witness.waiting.len());
            // Whatever waits has a wake-up, so an idle engine never sleeps on it for ever.
            prop_assert_eq!(scene.batcher.is_empty(), scene.batcher.next_wake(true).is_none());
        }
    }

    #[test]
    fn an_idle_engine_empties_the_queue(
        lengths in prop::collection::vec((0..2_usize, any::<bool>(), 1..100_usize), 1..100)
    ) {
        let mut scene = Scene::new();
        for (model, online, tokens) in lengths {
            let priority = if online { Priority::Online } else { Priority::Batch };
            scene.push_to(model, priority, tokens, 0, 1_000_000);
        }
        let now = scene.at(10);
        let mut left = BTreeSet::from_iter(0..scene.pushed);
        // Each take frees at least the oldest item, so as many takes as items are enough.
        while let Some(batch) = scene.batcher.take_ready(now, Demand::Idle) {
            prop_assert!(batch.items.iter().all(|item| left.remove(&item.payload)));
        }
        prop_assert!(left.is_empty());
        prop_assert!(scene.batcher.is_empty());
    }
}
