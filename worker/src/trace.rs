//! The spans of a run's steps and shards. All of them join the one trace of the run.
//!
//! Numbers are signed, since OpenTelemetry has no others.

use std::time::SystemTime;

use millrace_protocol::lease::Lease;
use millrace_protocol::manifest::Manifest;
use millrace_protocol::plan::{Plan, RunNumber};
use millrace_protocol::tally::Tally;
use millrace_telemetry::{KeyValue, PastSpan, RunTrace, SPANS, WHOLE_RUN};
use tracing::Span;
use tracing::field::Empty;

use crate::job::CheckedJob;
use crate::metrics::ShardOutcome;

/// The trace of a run. Outside of a cluster a job has no uid, and its output tells it from others.
pub fn of(job: &CheckedJob, run: RunNumber) -> RunTrace {
    RunTrace::of(job.uid.as_deref().unwrap_or(&job.output.uri), run)
}

/// Planning a run.
pub fn plan(job: &CheckedJob, run: RunNumber) -> Span {
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "plan",
        millrace.namespace = job.namespace,
        millrace.job = job.name,
        millrace.run = i64::from(run),
        millrace.shards = Empty,
    );
    joined(span, job, run)
}

/// Says how many shards were planned.
pub fn note_planned(span: &Span, plan: &Plan) {
    span.record("millrace.shards", plan.shards.len() as i64);
}

/// Attending to a leased shard, whatever becomes of it.
pub fn shard(job: &CheckedJob, run: RunNumber, lease: &Lease) -> Span {
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "shard",
        millrace.namespace = job.namespace,
        millrace.job = job.name,
        millrace.run = i64::from(run),
        millrace.shard = i64::from(lease.shard),
        millrace.epoch = lease.epoch as i64,
        millrace.outcome = Empty,
        millrace.rows = Empty,
        millrace.rows_failed = Empty,
        millrace.tokens = Empty,
    );
    joined(span, job, run)
}

/// Says what became of the current span's shard.
pub fn note_outcome(outcome: ShardOutcome) {
    Span::current().record("millrace.outcome", outcome.as_str());
}

/// Says what the commit of the current span's shard counts.
pub fn note_tally(tally: Tally) {
    let Tally {
        rows,
        tokens,
        cost: _,
    } = tally;
    Span::current()
        .record("millrace.rows", rows.total() as i64)
        .record("millrace.rows_failed", rows.failed as i64)
        .record("millrace.tokens", tokens as i64);
}

/// Making the current span's shard visible.
pub fn commit() -> Span {
    tracing::info_span!(target: SPANS, "commit")
}

/// Finishing a run.
pub fn finish(job: &CheckedJob, run: RunNumber) -> Span {
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "finish",
        millrace.namespace = job.namespace,
        millrace.job = job.name,
        millrace.run = i64::from(run),
    );
    joined(span, job, run)
}

/// Writes the span of a whole run that one process drove from `started` to its end. In a cluster the
/// operator writes it.
pub fn write_whole(job: &CheckedJob, manifest: &Manifest, started: SystemTime) {
    let Tally {
        rows,
        tokens,
        cost: _,
    } = manifest.totals;
    of(job, manifest.run).write_whole(|| PastSpan {
        name: WHOLE_RUN,
        started,
        ended: SystemTime::now(),
        attributes: vec![
            KeyValue::new("millrace.namespace", job.namespace.clone()),
            KeyValue::new("millrace.job", job.name.clone()),
            KeyValue::new("millrace.run", i64::from(manifest.run)),
            KeyValue::new("millrace.rows", rows.total() as i64),
            KeyValue::new("millrace.rows_failed", rows.failed as i64),
            KeyValue::new("millrace.tokens", tokens as i64),
        ],
        error: (!manifest.complete).then(|| "some shards were given up".to_owned()),
    });
}

fn joined(span: Span, job: &CheckedJob, run: RunNumber) -> Span {
    if !span.is_disabled() {
        of(job, run).join(&span);
    }
    span
}
