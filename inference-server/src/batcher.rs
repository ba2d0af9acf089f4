//! Which texts run together, and when.
//!
//! Pure policy: it reads no clock, knows neither models nor replies, and never waits. The caller
//! pushes items, asks [`Batcher::take_ready`] whenever an engine thread wants work, and wakes up
//! again at [`Batcher::next_wake`].
//!
//! The rules, in order:
//! 1. an online item always runs before a batch item;
//! 2. within a priority the oldest item always goes first, so nothing starves, and it takes the
//!    items of its model that are nearest to it in length along, so padding stays small;
//! 3. a batch costs its longest item times its items, which is what a padding backend pays and an
//!    upper bound of what a packing one does, and that stays within the token budget; an item
//!    above the budget runs alone.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

pub use millrace_protocol::priority::Priority;

/// Bounds of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens per batch of each model, padding included.
    pub batch_tokens_max: Vec<usize>,
    /// Most items per batch.
    pub batch_items_max: usize,
    /// Longest an online item waits for company while the engine is idle.
    pub wait_max: Duration,
}

/// One text for one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<T> {
    /// Index of the model, below the length of [`Limits::batch_tokens_max`].
    pub model: usize,
    /// Which items run first.
    pub priority: Priority,
    /// Length in tokens.
    pub tokens: usize,
    /// When it came.
    pub arrived: Instant,
    /// When its answer is of no use any more.
    pub deadline: Instant,
    /// What the caller wants back.
    pub payload: T,
}

/// Items that run together: one model, one priority.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// Index of the model.
    pub model: usize,
    /// The items' priority.
    pub priority: Priority,
    /// Never empty; the oldest item of the priority is the first.
    pub items: Vec<Item<T>>,
}

/// How urgently an engine thread wants a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// It has nothing to do.
    Idle,
    /// It runs a batch and would like the next one; only a full batch is worth fixing that early.
    Ahead,
}

/// The waiting items.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: Limits,
    online: Lane<T>,
    batch: Lane<T>,
    next_ticket: u64,
    /// No item's deadline lies before this; may be too early after items left.
    earliest_deadline: Option<Instant>,
}

impl<T> Batcher<T> {
    /// An empty batcher.
    pub fn new(limits: Limits) -> Self {
        let models = limits.batch_tokens_max.len();
        Self {
            limits,
            online: Lane::new(models),
            batch: Lane::new(models),
            next_ticket: 0,
            earliest_deadline: None,
        }
    }

    /// Number of waiting items.
    pub fn len(&self) -> usize {
        self.online.items + self.batch.items
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an item behind those that are there.
    pub fn push(&mut self, item: Item<T>) {
        let deadline = self.earliest_deadline.get_or_insert(item.deadline);
        *deadline = item.deadline.min(*deadline);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.lane_mut(item.priority).push(Queued { ticket, item });
    }

    /// The next batch, if one should run now.
    pub fn take_ready(&mut self, now: Instant, demand: Demand) -> Option<Batch<T>> {
        let priority = match (self.online.items, self.batch.items) {
            (0, 0) => return None,
            (0, _) => Priority::Batch,
            (_, _) => Priority::Online,
        };
        let lane = self.lane(priority);
        let oldest = lane.oldest()?;
        let selection = lane.select(&oldest, &self.limits);
        let ready = match demand {
            Demand::Ahead => selection.full,
            // Waiting for company costs nothing only while nothing else could run.
            Demand::Idle => {
                selection.full
                    || self.batch.items > 0
                    || now >= oldest.arrived + self.limits.wait_max
            }
        };
        ready.then(|| {
            let items = self.lane_mut(priority).remove(&oldest, &selection);
            Batch {
                model: oldest.model,
                priority,
                items,
            }
        })
    }

    /// Removes the items whose deadline has passed.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Item<T>> {
        if self.earliest_deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let mut earliest: Option<Instant> = None;
        let expired = self.take_where(|item| {
            let expired = item.deadline <= now;
            if !expired {
                earliest = Some(earliest.map_or(item.deadline, |other| other.min(item.deadline)));
            }
            expired
        });
        self.earliest_deadline = earliest;
        expired
    }

    /// Removes the items that `leaves` is true of, for instance because nobody waits for them.
    pub fn take_where(&mut self, mut leaves: impl FnMut(&Item<T>) -> bool) -> Vec<Item<T>> {
        let mut taken = self.online.take_where(&mut leaves);
        taken.extend(self.batch.take_where(&mut leaves));
        taken
    }

    /// When to look again although nothing was pushed: a deadline passes, or, where an engine
    /// thread is idle, an online item has waited long enough.
    pub fn next_wake(&self, engine_idle: bool) -> Option<Instant> {
        let waited = engine_idle
            .then(|| self.online.oldest())
            .flatten()
            .map(|oldest| oldest.arrived + self.limits.wait_max);
        let deadline = self.earliest_deadline.filter(|_| !self.is_empty());
        waited.into_iter().chain(deadline).min()
    }

    fn lane(&self, priority: Priority) -> &Lane<T> {
        match priority {
            Priority::Online => &self.online,
            Priority::Batch => &self.batch,
        }
    }

    fn lane_mut(&mut self, priority: Priority) -> &mut Lane<T> {
        match priority {
            Priority::Online => &mut self.online,
            Priority::Batch => &mut self.batch,
        }
    }
}

/// The waiting items of one priority: per model and length first in, first out.
#[derive(Debug)]
struct Lane<T> {
    by_model: Vec<BTreeMap<usize, VecDeque<Queued<T>>>>,
    items: usize,
}

#[derive(Debug)]
struct Queued<T> {
    /// Counts the items ever pushed; a lower one is older.
    ticket: u64,
    item: Item<T>,
}

#[derive(Debug, Clone, Copy)]
struct Oldest {
    ticket: u64,
    model: usize,
    tokens: usize,
    arrived: Instant,
}

/// How many items to take of each length, the oldest item's own length first.
struct Selection {
    counts: Vec<(usize, usize)>,
    /// Whether a limit left no room for one more.
    full: bool,
}

impl<T> Lane<T> {
    fn new(models: usize) -> Self {
        Self {
            by_model: (0..models).map(|_| BTreeMap::new()).collect(),
            items: 0,
        }
    }

    fn push(&mut self, queued: Queued<T>) {
        let lengths = &mut self.by_model[queued.item.model];
        lengths
            .entry(queued.item.tokens)
            .or_default()
            .push_back(queued);
        self.items += 1;
    }

    fn oldest(&self) -> Option<Oldest> {
        let fronts = self.by_model.iter().flat_map(|lengths| lengths.values());
        fronts
            .filter_map(|bucket| bucket.front())
            .map(|Queued { ticket, item }| Oldest {
                ticket: *ticket,
                model: item.model,
                tokens: item.tokens,
                arrived: item.arrived,
            })
            .min_by_key(|oldest| oldest.ticket)
    }

    /// Walks away from the oldest item's length in both directions, always to the nearer side.
    fn select(&self, oldest: &Oldest, limits: &Limits) -> Selection {
        let lengths = &self.by_model[oldest.model];
        let tokens_max = limits.batch_tokens_max[oldest.model];
        let mut shorter = lengths.range(..oldest.tokens).rev().peekable();
        let mut longer = lengths.range(oldest.tokens..).peekable();
        let mut selection = Selection {
            counts: Vec::new(),
            full: false,
        };
        let mut taken = 0;
        let mut longest = oldest.tokens;
        loop {
            let below = shorter.peek().map(|(length, _)| oldest.tokens - **length);
            let above = longer.peek().map(|(length, _)| **length - oldest.tokens);
            let next = match (below, above) {
                (None, None) => return selection,
                (Some(below), Some(above)) if below < above => shorter.next(),
                (Some(_), None) => shorter.next(),
                (_, Some(_)) => longer.next(),
            };
            let Some((&length, bucket)) = next else {
                return selection;
            };
            // The oldest item goes whatever it costs.
            let affordable = (tokens_max / length.max(longest)).max(usize::from(taken == 0));
            let room = affordable.min(limits.batch_items_max).saturating_sub(taken);
            let count = bucket.len().min(room);
            if count > 0 {
                selection.counts.push((length, count));
                taken += count;
                longest = longest.max(length);
            }
            if count == room {
                selection.full = true;
                return selection;
            }
        }
    }

    fn remove(&mut self, oldest: &Oldest, selection: &Selection) -> Vec<Item<T>> {
        let lengths = &mut self.by_model[oldest.model];
        let mut items = Vec::with_capacity(selection.counts.iter().map(|(_, count)| count).sum());
        for (length, count) in &selection.counts {
            let bucket = lengths.get_mut(length).expect("a selected length is there");
            items.extend(bucket.drain(..count).map(|queued| queued.item));
            if bucket.is_empty() {
                lengths.remove(length);
            }
        }
        self.items -= items.len();
        items
    }

    fn take_where(&mut self, leaves: &mut impl FnMut(&Item<T>) -> bool) -> Vec<Item<T>> {
        let mut taken = VecDeque::new();
        for lengths in &mut self.by_model {
            lengths.retain(|_, bucket| {
                for queued in std::mem::take(bucket) {
                    let to = if leaves(&queued.item) {
                        &mut taken
                    } else {
                        &mut *bucket
                    };
                    to.push_back(queued);
                }
                !bucket.is_empty()
            });
        }
        self.items -= taken.len();
        taken.into_iter().map(|queued| queued.item).collect()
    }
}

#[cfg(test)]
#[path = "batcher_tests.rs"]
mod tests;
