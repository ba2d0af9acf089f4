//! What the worker of a service counts, in OpenMetrics' text format. No label names a job, a shard
//! or a pod.

mod cache;
mod calls;

use std::sync::atomic::AtomicU64;

use millrace_answers::Lookups;
use millrace_protocol::tally::{Rows, Tally};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use self::cache::CacheTotals;
pub use self::calls::{CallOutcome, Calls, InFlight};

/// What became of a shard in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardOutcome {
    /// It has a commit, ours or another's.
    Committed,
    /// An attempt at it failed for a fault of its own.
    Failed,
    /// It was given back, or its lease was lost; nothing is charged to it.
    Released,
}

impl ShardOutcome {
    /// The word for labels and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            ShardOutcome::Committed => "committed",
            ShardOutcome::Failed => "failed",
            ShardOutcome::Released => "released",
        }
    }
}

/// The counts of one worker over all its jobs; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    rows: Family<OutcomeLabel, Counter>,
    tokens: Counter,
    cost: Counter<f64, AtomicU64>,
    shards: Family<OutcomeLabel, Counter>,
    shards_in_hand: Gauge,
    cache_lookups: Lookups,
    calls: Calls,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

impl Metrics {
    /// Notes rows that were answered, and what they cost.
    pub fn note_answered(&self, tally: Tally) {
        let Tally { rows, tokens, cost } = tally;
        let Rows {
            succeeded,
            failed,
            skipped,
        } = rows;
        for (outcome, rows) in [
            ("succeeded", succeeded),
            ("failed", failed),
            ("skipped", skipped),
        ] {
            self.rows
                .get_or_create(&OutcomeLabel { outcome })
                .inc_by(rows);
        }
        self.tokens.inc_by(tokens);
        self.cost.inc_by(cost.as_f64());
    }

    /// Tokens that went through models so far.
    pub fn tokens(&self) -> u64 {
        self.tokens.get()
    }

    /// What was sought before APIs elsewhere were asked.
    pub fn cache_lookups(&self) -> Lookups {
        self.cache_lookups.clone()
    }

    /// Calls of APIs elsewhere.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// A shard is in hand for as long as what this returns is kept.
    pub fn take_in_hand(&self) -> InHand {
        self.shards_in_hand.inc();
        InHand(self.shards_in_hand.clone())
    }

    /// Notes a shard that is out of hand.
    pub fn note_shard(&self, outcome: ShardOutcome) {
        let outcome = outcome.as_str();
        self.shards.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// All metrics as text.
    pub fn render(&self) -> String {
        let Self {
            rows,
            tokens,
            cost,
            shards,
            shards_in_hand,
            cache_lookups,
            calls,
        } = self.clone();
        let mut registry = Registry::with_prefix("millrace_worker");
        let help = "Rows answered, those of shards that were given back later included";
        registry.register("rows", help, rows);
        let help = "Tokens that went through models, by the same rows";
        registry.register("tokens", help, tokens);
        let help = "Cost of calls, in the currency of the service's prices";
        registry.register("cost", help, cost);
        registry.register("shards", "Shards that went out of hand", shards);
        let help = "Shards that are worked on";
        registry.register("shards_in_hand", help, shards_in_hand);
        let help = "Answers of APIs elsewhere sought in a tier of the cache";
        registry.register("cache_lookups", help, cache_lookups.family());
        calls.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a string cannot fail");
        text
    }
}

/// A shard that counts as in hand.
#[derive(Debug)]
pub struct InHand(Gauge);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.dec();
    }
}
