//! How far a job is, as whoever asks is told. Pure, from spec and status alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use millrace_crds::batch_job::ShardCounts;
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_protocol::progress::{Counts, JobProgress, Phase};

use super::standing::{standing, succeeded};

/// How far the job is. Of a run that is only asked for nothing is counted yet.
pub fn of(job: &BatchJob, now: &Time) -> JobProgress {
    let standing = standing(job);
    let status = job.status.as_ref().filter(|_| !standing.is_new);
    let said = status.and_then(succeeded);
    // What is said of a run that ended is not true of it any more once it goes on.
    let said = said.filter(|_| !standing.is_resumed);
    JobProgress {
        namespace: job.namespace().unwrap_or_default(),
        name: job.name_any(),
        uid: job.uid(),
        run: standing.run,
        phase: said.map_or(Phase::Preparing, phase),
        reason: said.map(|said| said.reason.clone()),
        output: job.spec.output.uri.clone(),
        progress: status.and_then(|status| counts(status, now)),
        message: said.map(|said| said.message.clone()),
    }
}

fn phase(succeeded: &Condition) -> Phase {
    match (succeeded.status.as_str(), succeeded.reason.as_str()) {
        ("True", _) => Phase::Succeeded,
        ("False", _) => Phase::Failed,
        (_, "Suspended") => Phase::Suspended,
        (_, "Running" | "LeasesUnavailable" | "Finishing") => Phase::Running,
        (_, "Cancelling" | "Expiring" | "Stopping") => Phase::Running,
        _ => Phase::Preparing,
    }
}

fn counts(status: &BatchJobStatus, now: &Time) -> Option<Counts> {
    let ShardCounts {
        total, committed, ..
    } = status.shards?;
    let rows = status.rows.unwrap_or_default();
    let rows_per_second = status.rows_per_second.unwrap_or(0.0);
    let ended = rows.succeeded + rows.failed + rows.skipped;
    // The status holds one rate; a row has as many tokens as those before it had.
    let tokens_per_row = status.tokens.unwrap_or(0) as f64 / ended.max(1) as f64;
    let left = |eta: &Time| eta.0.duration_since(now.0).as_secs().max(0) as u64;
    Some(Counts {
        shards_committed: committed,
        shards_total: total,
        rows_succeeded: rows.succeeded,
        rows_failed: rows.failed,
        rows_per_second,
        tokens_per_second: (tokens_per_row * rows_per_second).round(),
        eta_seconds: status.eta.as_ref().map(left),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What is told at second 100 of a job with this spec and status.
    fn told(rerun_failed: u32, succeeded: (&str, &str), rest: Value) -> Value {
        let mut status = json!({"run": 1, "conditions": [{
            "type": "Succeeded", "status": succeeded.0, "reason": succeeded.1, "message": "why",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        for (name, value) in rest.as_object().unwrap() {
            status[name] = value.clone();
        }
        let job = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job", "namespace": "tenant", "uid": "u"},
            "spec": {
                "serviceRef": {"name": "service"}, "rerunFailed": rerun_failed,
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
            "status": status,
        }))
        .unwrap();
        let now = Time(k8s_openapi::jiff::Timestamp::from_second(100).unwrap());
        json!(of(&job, &now))
    }

    #[test]
    fn a_job_at_work_is_told_of_in_counts_and_rates() {
        let status = json!({
            "shards": {"total": 4, "committed": 1, "failed": 0},
            "rows": {"succeeded": 98, "failed": 1, "skipped": 1},
            "tokens": 2_000, "rowsPerSecond": 10.0, "eta": "1970-01-01T00:02:10Z",
            "sampleErrors": [{"position": "s3://bucket/in@0", "code": "c", "message": "a text"}],
        });
        let told = told(0, ("Unknown", "Running"), status);
        let expected = json!({
            "namespace": "tenant", "name": "job", "uid": "u", "run": 1,
            "phase": "Running", "reason": "Running", "message": "why",
            "output": "s3://bucket/out",
            "progress": {
                "shardsCommitted": 1, "shardsTotal": 4, "rowsSucceeded": 98, "rowsFailed": 1,
                "rowsPerSecond": 10.0, "tokensPerSecond": 200.0, "etaSeconds": 30,
            },
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn the_phase_follows_from_the_condition() {
        for (condition, expected) in [
            (("Unknown", "Planning"), "Preparing"),
            (("Unknown", "ServiceNotFound"), "Preparing"),
            (("Unknown", "Suspended"), "Suspended"),
            (("Unknown", "Stopping"), "Running"),
            (("True", "Completed"), "Succeeded"),
            (("False", "ShardsFailed"), "Failed"),
        ] {
            assert_eq!(told(0, condition, json!({}))["phase"], expected);
        }
    }

    #[test]
    fn of_a_run_that_is_only_asked_for_nothing_of_the_one_before_is_told() {
        let shards = json!({"shards": {"total": 4, "committed": 3, "failed": 1}});
        let told = told(1, ("False", "ShardsFailed"), shards);
        assert_eq!(
            (&told["run"], &told["phase"]),
            (&json!(2), &json!("Preparing"))
        );
        assert_eq!(told.get("progress"), None);
        assert_eq!(told.get("reason"), None);
    }
}
