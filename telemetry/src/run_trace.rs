//! The one trace of a run. Every process that works on the run derives the same ids from what it
//! knows of it, so that they join without talking.

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use opentelemetry_sdk::trace::SamplingDecision;
use sha2::{Digest, Sha256};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::export::{self, Exporting, with_ids};
use crate::past::PastSpan;

/// Name of the span that stands for a whole run.
pub const WHOLE_RUN: &str = "batch_job";

/// The trace of a run, and the span that stands for the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunTrace {
    trace_id: TraceId,
    span_id: SpanId,
}

impl RunTrace {
    /// The trace of run `run` of the job with this `identity`: its object's uid, or outside of a
    /// cluster whatever tells it from other jobs.
    ///
    /// The identity is hashed, since samplers take a share of all traces by the id's bits, and those
    /// of a uid are not all random.
    pub fn of(identity: &str, run: u32) -> Self {
        let digest = Sha256::new()
            .chain_update(identity)
            .chain_update([0])
            .chain_update(run.to_be_bytes())
            .finalize();
        let (trace_id, rest) = digest.split_first_chunk().expect("32 bytes hold 16");
        let span_id = rest.first_chunk().expect("16 bytes hold 8");
        Self {
            trace_id: TraceId::from_bytes(*trace_id),
            span_id: SpanId::from_bytes(*span_id),
        }
    }

    /// Id of the trace, in bytes as it travels.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id.to_bytes()
    }

    /// Id of the span that stands for the whole run.
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id.to_bytes()
    }

    /// Makes `span` a child of the run's span. To be called before the span has a child.
    pub fn join(&self, span: &Span) {
        if !span.is_disabled()
            && let Some(exporting) = export::exporting()
        {
            // Only a span that has begun already keeps the parent it has.
            let _ = span.set_parent(self.context(exporting));
        }
    }

    /// Writes a child of the run's span that is over already.
    pub fn write(&self, past: impl FnOnce() -> PastSpan) {
        if let Some(exporting) = export::exporting() {
            past().write(exporting, &self.context(exporting));
        }
    }

    /// Writes the span that stands for the whole run, once it is over.
    pub fn write_whole(&self, past: impl FnOnce() -> PastSpan) {
        if let Some(exporting) = export::exporting() {
            let write = || past().write(exporting, &Context::new());
            with_ids(self.trace_id, self.span_id, write);
        }
    }

    /// The run's span as a parent. Whether the trace is sampled is decided as if the span began
    /// here: by the trace's id alone, so that every process decides the same.
    fn context(&self, exporting: &Exporting) -> Context {
        let kind = &SpanKind::Internal;
        let sampler = &exporting.sampler;
        let sampled = sampler.should_sample(None, self.trace_id, "", kind, &[], &[]);
        let is_sampled = sampled.decision == SamplingDecision::RecordAndSample;
        let flags = TraceFlags::default().with_sampled(is_sampled);
        let state = TraceState::default();
        let parent = SpanContext::new(self.trace_id, self.span_id, flags, true, state);
        Context::new().with_remote_span_context(parent)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::{Sampler, ShouldSample};

    use super::*;

    const UID: &str = "6f0d7a51-3b2e-4d6c-9a43-0c6f2f0d1b2a";

    #[test]
    fn the_same_run_has_the_same_ids_wherever_it_is_asked_for() {
        assert_eq!(RunTrace::of(UID, 1), RunTrace::of(UID, 1));
        // Another build of another process must derive the same.
        assert_eq!(
            RunTrace::of(UID, 1).trace_id.to_string(),
            "82f69a9736ce392e83dcf2d96b1403bf"
        );
    }

    #[test]
    fn other_runs_and_other_jobs_have_other_ids() {
        let runs = [(UID, 1), (UID, 2), ("", 1), ("6f0d7a51", 1)];
        for (index, one) in runs.iter().enumerate() {
            for other in &runs[index + 1..] {
                let (one, other) = (RunTrace::of(one.0, one.1), RunTrace::of(other.0, other.1));
                assert_ne!(one.trace_id, other.trace_id);
                assert_ne!(one.span_id, other.span_id);
            }
        }
    }

    #[test]
    fn a_sampler_by_ratio_takes_its_share_of_runs() {
        let sampler = Sampler::TraceIdRatioBased(0.1);
        let is_sampled = |uid: &u32| {
            // The digits of a uid's version and variant are the same in all of them.
            let run = RunTrace::of(&format!("{uid:08x}-0000-4000-8000-000000000000"), 1);
            let kind = &SpanKind::Internal;
            let sampled = sampler.should_sample(None, run.trace_id, "", kind, &[], &[]);
            sampled.decision == SamplingDecision::RecordAndSample
        };
        let sampled = (0..1_000).filter(is_sampled).count();
        assert!((70..130).contains(&sampled), "{sampled} of 1000");
    }
}
