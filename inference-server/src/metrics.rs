//! What the server counts and measures, in Prometheus' text format.
//!
//! Names carry the `millrace_` prefix and base units; labels are endpoints, statuses and codes,
//! never a job, shard, pod or model of a tenant's making.

use std::time::Instant;

use millrace_answers::Lookups;
use millrace_protocol::row::RowErrorCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{batcher::Batch, work::Work};

/// The server's metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<EndpointLabel, Histogram, fn() -> Histogram>,
    row_errors: Family<CodeLabel, Counter>,
    /// Answers sought in the cache.
    pub cache_lookups: Lookups,
    queue_seconds: Histogram,
    batch_items: Histogram,
    batch_tokens: Histogram,
    /// Duration of each forward.
    pub forward_seconds: Histogram,
    /// Texts waiting.
    pub queue_items: Gauge,
    /// Texts dropped because nobody waited for them any more.
    pub abandoned: Counter,
    /// Batches halved because they failed.
    pub batch_splits: Counter,
    /// Texts that were tokenised.
    pub tokenized_texts: Counter,
    /// Tokens that went through models.
    pub tokens: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// 0.5 ms to 65 s: from one short text on a GPU to a full queue on a laptop.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 18))
}

impl Metrics {
    /// All metrics, registered and zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("millrace"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            row_errors: Family::default(),
            cache_lookups: Lookups::default(),
            queue_seconds: seconds(),
            batch_items: Histogram::new(exponential_buckets(1.0, 2.0, 17)),
            batch_tokens: Histogram::new(exponential_buckets(8.0, 2.0, 17)),
            forward_seconds: seconds(),
            queue_items: Gauge::default(),
            abandoned: Counter::default(),
            batch_splits: Counter::default(),
            tokenized_texts: Counter::default(),
            tokens: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let Self {
            registry,
            requests,
            request_seconds,
            row_errors,
            cache_lookups,
            queue_seconds,
            batch_items,
            batch_tokens,
            forward_seconds,
            queue_items,
            abandoned,
            batch_splits,
            tokenized_texts,
            tokens,
        } = self;
        registry.register("request", "Requests answered", requests.clone());
        let help = "Time from a request's headers to its answer";
        let seconds = request_seconds.clone();
        registry.register_with_unit("request_duration", help, Unit::Seconds, seconds);
        let help = "Time a text waited for its batch";
        let seconds = queue_seconds.clone();
        registry.register_with_unit("request_queue_duration", help, Unit::Seconds, seconds);
        let help = "Time a forward took";
        let seconds = forward_seconds.clone();
        registry.register_with_unit("request_inference_duration", help, Unit::Seconds, seconds);
        let help = "Texts that ended as an error";
        registry.register("row_errors", help, row_errors.clone());
        let help = "Texts waiting for a batch";
        registry.register("queue_size", help, queue_items.clone());
        registry.register("batch_next_size", "Texts per batch", batch_items.clone());
        let help = "Tokens per batch";
        registry.register("batch_next_tokens", help, batch_tokens.clone());
        let help = "Texts nobody waited for";
        registry.register("abandoned_texts", help, abandoned.clone());
        let help = "Batches halved after a failure";
        registry.register("batch_splits", help, batch_splits.clone());
        let help = "Answers sought in a tier of the cache";
        registry.register("cache_lookups", help, cache_lookups.family());
        let help = "Texts tokenised, once for all models with the same tokens";
        registry.register("tokenized_texts", help, tokenized_texts.clone());
        registry.register("tokens", "Tokens that went through models", tokens.clone());
    }

    /// Notes an answered request.
    pub fn note_request(&self, endpoint: &'static str, status: u16, started: Instant) {
        self.requests
            .get_or_create(&RequestLabels { endpoint, status })
            .inc();
        let seconds = started.elapsed().as_secs_f64();
        self.request_seconds
            .get_or_create(&EndpointLabel { endpoint })
            .observe(seconds);
    }

    /// Notes a batch that leaves the queue.
    pub fn note_batch(&self, batch: &Batch<Work>, now: Instant) {
        self.batch_items.observe(batch.items.len() as f64);
        self.batch_tokens
            .observe(batch.items.iter().map(|item| item.tokens).sum::<usize>() as f64);
        for item in &batch.items {
            let waited = now.saturating_duration_since(item.arrived);
            self.queue_seconds.observe(waited.as_secs_f64());
        }
    }

    /// Notes a text that ended as an error.
    pub fn note_row_error(&self, code: RowErrorCode) {
        self.row_errors
            .get_or_create(&CodeLabel {
                code: code.as_str(),
            })
            .inc();
    }

    /// All metrics in OpenMetrics' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
