//! How often answers were sought, and found.

use millrace_protocol::registry::CacheCounts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// Counts of all caches of a process, by tier; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lookups(Family<LookupLabels, Counter>);

/// A tier, and whether it knew.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LookupLabels {
    tier: &'static str,
    outcome: &'static str,
}

impl Lookups {
    /// Notes that an answer was sought in a tier.
    pub(crate) fn note(&self, tier: &'static str, known: bool) {
        let outcome = if known { "hit" } else { "miss" };
        let labels = LookupLabels { tier, outcome };
        self.0.get_or_create(&labels).inc();
    }

    /// What was known so far. The memory is asked for every answer, slower tiers for what it lacks.
    pub fn counts(&self) -> CacheCounts {
        let count = |tier, outcome| {
            let labels = LookupLabels { tier, outcome };
            self.0.get_or_create(&labels).get()
        };
        let slower = count("disk", "hit") + count("redis", "hit");
        CacheCounts {
            hits: count("memory", "hit") + slower,
            misses: count("memory", "miss").saturating_sub(slower),
        }
    }

    /// The counters, for a registry.
    pub fn family(&self) -> Family<LookupLabels, Counter> {
        self.0.clone()
    }
}
