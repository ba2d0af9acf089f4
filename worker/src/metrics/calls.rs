//! What the worker counts of calls of APIs elsewhere.

use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// It was answered.
    Answered,
    /// The API is asked too much: the same call is made again later.
    PutOff,
    /// The API was not reached.
    Away,
    /// It failed; another try may succeed.
    Failed,
    /// A row of it is to blame.
    Rejected,
    /// No call would be answered.
    Refused,
}

impl CallOutcome {
    /// The word for labels.
    fn as_str(self) -> &'static str {
        match self {
            CallOutcome::Answered => "answered",
            CallOutcome::PutOff => "put_off",
            CallOutcome::Away => "away",
            CallOutcome::Failed => "failed",
            CallOutcome::Rejected => "rejected",
            CallOutcome::Refused => "refused",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The counts of calls; cheap to clone.
#[derive(Debug, Clone)]
pub struct Calls {
    calls: Family<OutcomeLabel, Counter>,
    seconds: Histogram,
    waited_seconds: Histogram,
    rows: Histogram,
    in_flight: Gauge,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            // From 50 ms to 1.7 minutes, and from 10 ms to 5.5 minutes.
            seconds: Histogram::new(exponential_buckets(0.05, 2.0, 12)),
            waited_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            rows: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            in_flight: Gauge::default(),
        }
    }
}

impl Calls {
    /// A call with so many rows begins, after it waited for its turn. It is in flight for as long as
    /// what this returns is kept.
    pub fn begin(&self, rows: usize, waited: Duration) -> InFlight {
        self.rows.observe(rows as f64);
        self.waited_seconds.observe(waited.as_secs_f64());
        self.in_flight.inc();
        InFlight {
            calls: self.clone(),
            begun: Instant::now(),
        }
    }

    /// Registers all of them.
    pub(super) fn register(self, registry: &mut Registry) {
        let Self {
            calls,
            seconds,
            waited_seconds,
            rows,
            in_flight,
        } = self;
        registry.register("calls", "Calls of APIs elsewhere", calls);
        let help = "Time from a call's request to its answer";
        registry.register_with_unit("call_duration", help, Unit::Seconds, seconds);
        let help = "Time a call waited for the limits before it was made";
        registry.register_with_unit("call_wait", help, Unit::Seconds, waited_seconds);
        registry.register("call_rows", "Rows per call", rows);
        registry.register("calls_in_flight", "Calls that are made", in_flight);
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct InFlight {
    calls: Calls,
    begun: Instant,
}

impl InFlight {
    /// It has ended. Returns how long it took.
    pub fn end(self, outcome: CallOutcome) -> Duration {
        let took = self.begun.elapsed();
        let outcome = outcome.as_str();
        let label = OutcomeLabel { outcome };
        self.calls.calls.get_or_create(&label).inc();
        self.calls.seconds.observe(took.as_secs_f64());
        took
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.calls.in_flight.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_what_became_of_them() {
        let metrics = crate::metrics::Metrics::default();
        let calls = metrics.calls();
        let call = calls.begin(5, Duration::from_secs(3));
        let _another = calls.begin(1, Duration::ZERO);
        call.end(CallOutcome::PutOff);
        let text = metrics.render();
        for line in [
            "millrace_worker_calls_total{outcome=\"put_off\"} 1",
            "millrace_worker_calls_in_flight 1",
            "millrace_worker_call_rows_sum 6.0",
            "millrace_worker_call_wait_seconds_sum 3.0",
            "millrace_worker_call_duration_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
