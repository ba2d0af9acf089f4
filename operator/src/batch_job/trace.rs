//! The span that stands for a whole job, written when the job ends.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use millrace_crds::batch_job::RowCounts;
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_telemetry::{KeyValue, PastSpan, RunTrace, WHOLE_RUN};

use super::standing::{standing, succeeded};

/// The trace of a job's run.
pub fn of(job: &BatchJob) -> RunTrace {
    RunTrace::of(&job.uid().unwrap_or_default(), standing(job).run)
}

/// Writes the span of a job that ended with `status`.
pub fn write_whole(job: &BatchJob, status: &BatchJobStatus, now: Time) {
    of(job).write_whole(|| whole(job, status, now));
}

/// From the beginning of the run, so that planning lies within it, to its end. Pure.
fn whole(job: &BatchJob, status: &BatchJobStatus, now: Time) -> PastSpan {
    let ended = status.completion_time.clone().unwrap_or(now);
    let began = status.start_time.clone();
    let started = began.or_else(|| job.creation_timestamp());
    let started = started.unwrap_or(ended.clone());
    let failed = succeeded(status).filter(|it| it.status == "False");
    let RowCounts {
        succeeded: rows_succeeded,
        failed: rows_failed,
        skipped: rows_skipped,
    } = status.rows.unwrap_or_default();
    let rows = rows_succeeded + rows_failed + rows_skipped;
    PastSpan {
        name: WHOLE_RUN,
        started: started.0.into(),
        ended: ended.0.into(),
        attributes: vec![
            KeyValue::new("millrace.namespace", job.namespace().unwrap_or_default()),
            KeyValue::new("millrace.job", job.name_any()),
            KeyValue::new("millrace.run", i64::from(standing(job).run)),
            KeyValue::new("millrace.rows", rows as i64),
            KeyValue::new("millrace.rows_failed", rows_failed as i64),
            KeyValue::new("millrace.tokens", status.tokens.unwrap_or(0) as i64),
        ],
        error: failed.map(|failed| format!("{}: {}", failed.reason, failed.message)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::time::SystemTime;

    use super::*;

    fn job() -> BatchJob {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {
                "name": "job", "namespace": "tenant", "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "serviceRef": {"name": "service"},
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap()
    }

    fn status(succeeded: &str, reason: &str) -> BatchJobStatus {
        serde_json::from_value(json!({
            "conditions": [{
                "type": "Succeeded", "status": succeeded, "reason": reason, "message": "why",
                "lastTransitionTime": "2026-01-01T00:01:00Z",
            }],
            "startTime": "2026-01-01T00:00:10Z",
            "completionTime": "2026-01-01T00:01:00Z",
            "rows": {"succeeded": 5, "failed": 2, "skipped": 1},
            "tokens": 70,
        }))
        .unwrap()
    }

    fn at(second: i64) -> SystemTime {
        let start: k8s_openapi::jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        SystemTime::from(start) + std::time::Duration::from_secs(second as u64)
    }

    #[test]
    fn a_run_is_one_span_from_its_beginning_to_its_end() {
        let now = Time("2026-01-01T00:02:00Z".parse().unwrap());
        let span = whole(&job(), &status("True", "Completed"), now.clone());
        assert_eq!((span.started, span.ended), (at(10), at(60)));
        assert!(span.attributes.contains(&KeyValue::new("millrace.rows", 8)));
        assert_eq!(span.error, None);
        let unplanned = BatchJobStatus {
            start_time: None,
            completion_time: None,
            ..status("False", "PlanFailed")
        };
        let span = whole(&job(), &unplanned, now);
        assert_eq!((span.started, span.ended), (at(0), at(120)));
        assert_eq!(span.error.as_deref(), Some("PlanFailed: why"));
    }
}
