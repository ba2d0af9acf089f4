//! The picture of one job that `status` prints. Pure.

use k8s_openapi::jiff::Timestamp;
use millrace_crds::batch_job::{RowCounts, SampleError, ShardCounts};
use millrace_crds::{BatchJob, BatchJobStatus};

use super::end::{End, end, succeeded};
use super::events;
use super::gather::Seen;
use super::hints;
use super::jobs::output_of;
use super::show::{
    age, clipped, count, estimate_text, or_dash, route_text, span, spent_text, table,
};
use super::workers::{Worker, worker};
use crate::invocation::Invocation;
use millrace_crds::names::service_of;

/// Failed rows that are shown where room is short.
const ERRORS_MAX: usize = 3;

/// Events that are shown where room is short.
const EVENTS_MAX: usize = 8;

/// Pods that are shown where room is short.
const WORKERS_MAX: usize = 20;

/// Longest message of a condition, where room is short.
const MESSAGE_CHARS_MAX: usize = 100;

/// Everything about the job, line by line.
pub fn lines(seen: &Seen, wide: bool, invocation: &Invocation, now: Timestamp) -> Vec<String> {
    let Seen { job, pods, events } = seen;
    let mut lines = facts(job, now);
    lines.extend(section("workers", workers(pods, wide, now)));
    lines.extend(section("failed rows", failed_rows(job, wide, invocation)));
    lines.extend(section("conditions", conditions(job, wide, now)));
    lines.extend(section("events", events_table(events, wide, now)));
    lines.extend(section("what to do", what_to_do(seen, invocation)));
    lines.extend(section("next", next(job, invocation)));
    lines
}

/// The job alone: what a command prints that watched it to its end.
pub fn short(job: &BatchJob, invocation: &Invocation, now: Timestamp) -> Vec<String> {
    let mut lines = facts(job, now);
    lines.extend(section("failed rows", failed_rows(job, false, invocation)));
    let hint = hints::for_job(job, invocation).into_iter().collect();
    lines.extend(section("what to do", hint));
    lines.extend(section("next", next(job, invocation)));
    lines
}

fn section(title: &str, body: Vec<String>) -> Vec<String> {
    if body.is_empty() {
        return Vec::new();
    }
    let indented = body.into_iter().map(|line| format!("  {line}"));
    std::iter::once(format!("{title}:"))
        .chain(indented)
        .collect()
}

fn facts(job: &BatchJob, now: Timestamp) -> Vec<String> {
    let nothing = BatchJobStatus::default();
    let BatchJobStatus {
        conditions: _,
        observed_generation: _,
        start_time,
        run,
        workers,
        eta,
        progress,
        rows,
        shards,
        failed_indexes,
        tokens,
        cost,
        estimate,
        rows_per_second,
        routes,
        completion_time,
        output: _,
        sample_errors: _,
    } = job.status.as_ref().unwrap_or(&nothing);
    let mut lines = vec![headline(job)];
    let mut fact = |label: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("  {label:10}{value}")));
    };
    let until = completion_time.as_ref().map_or(now, |it| it.0);
    let is_over = end(job).is_some();
    fact("service", Some(services_of(job)));
    fact("output", Some(output_of(job).to_owned()));
    fact("run", run.map(|run| run.to_string()));
    let started = |at: Timestamp| format!("{at} ({} ago)", age(start_time.as_ref(), now));
    fact("started", start_time.as_ref().map(|it| started(it.0)));
    let took = start_time
        .as_ref()
        .filter(|_| !is_over || completion_time.is_some());
    let took = took.map(|it| span(until.duration_since(it.0).as_secs()));
    fact("duration", took);
    fact("progress", progress.clone());
    fact("rows", rows.map(rows_text));
    let undone = undone(job);
    fact("shards", shards.map(|shards| shards_text(shards, undone)));
    fact(undone, failed_indexes.clone());
    fact("tokens", tokens.map(count));
    fact("cost", cost.as_ref().map(spent_text));
    let currency = cost.as_ref().map(|it| it.currency.as_str());
    for route in routes {
        fact("route", Some(route_text(route, currency)));
    }
    let estimate = estimate.as_ref().filter(|_| !is_over);
    fact("estimate", estimate.map(estimate_text));
    fact(
        "rate",
        rows_per_second.map(|rate| format!("{rate:.1} rows/s")),
    );
    let left = eta.as_ref().filter(|_| !is_over);
    fact("eta", left.map(|it| eta_text(it.0, now)));
    fact("workers", workers.map(|workers| workers.to_string()));
    lines
}

/// Who answers the rows of a job.
fn services_of(job: &BatchJob) -> String {
    match job.spec.routes {
        Some(_) => job.spec.services().join(", "),
        None => service_of(job),
    }
}

/// Which job it is, and how it is.
fn headline(job: &BatchJob) -> String {
    let metadata = &job.metadata;
    let (name, namespace) = (metadata.name.as_deref(), metadata.namespace.as_deref());
    let state = match succeeded(job) {
        Some(condition) => format!("{}: {}", condition.reason, condition.message.trim()),
        None => "no operator has looked at it yet".to_owned(),
    };
    format!(
        "batchjob/{} in {}: {state}",
        name.unwrap_or_default(),
        namespace.unwrap_or_default()
    )
}

fn eta_text(eta: Timestamp, now: Timestamp) -> String {
    let left = span(eta.duration_since(now).as_secs());
    format!("{eta} ({left} left)")
}

fn rows_text(rows: RowCounts) -> String {
    let RowCounts {
        succeeded,
        failed,
        skipped,
    } = rows;
    let (succeeded, failed, skipped) = (count(succeeded), count(failed), count(skipped));
    format!("{succeeded} succeeded, {failed} failed, {skipped} skipped")
}

/// What became of shards without a commit: those of a job that was ended early were hardly tried.
fn undone(job: &BatchJob) -> &'static str {
    match end(job) {
        Some(End::Failed) => "not done",
        Some(End::Completed | End::ShardsFailed) | None => "given up",
    }
}

fn shards_text(shards: ShardCounts, undone: &str) -> String {
    let ShardCounts {
        total,
        committed,
        failed,
        waiting,
    } = shards;
    let waiting = match waiting {
        0 => String::new(),
        waiting => format!(", {waiting} of duplicates wait for the others"),
    };
    format!("{committed} of {total} committed, {failed} {undone}{waiting}")
}

/// Pods and how they are.
pub fn workers(
    pods: &Result<Vec<k8s_openapi::api::core::v1::Pod>, String>,
    wide: bool,
    now: Timestamp,
) -> Vec<String> {
    let pods = match pods {
        Ok(pods) => pods,
        Err(reason) => return vec![reason.clone()],
    };
    if pods.is_empty() {
        return vec!["none".to_owned()];
    }
    let shown_max = if wide { usize::MAX } else { WORKERS_MAX };
    let row = |told: Worker| {
        let Worker {
            name,
            node,
            state,
            ready,
            restarts,
            created,
        } = told;
        vec![
            name,
            or_dash(node),
            state,
            format!("{}/{}", ready.0, ready.1),
            restarts.to_string(),
            age(created.as_ref(), now),
        ]
    };
    let rows = pods.iter().take(shown_max).map(|pod| row(worker(pod)));
    let header = ["NAME", "NODE", "PHASE", "READY", "RESTARTS", "AGE"];
    let mut lines = table(&header, rows.collect());
    let unshown = pods.len().saturating_sub(shown_max);
    if unshown > 0 {
        lines.push(format!("and {unshown} more; -o wide shows all"));
    }
    lines
}

fn failed_rows(job: &BatchJob, wide: bool, invocation: &Invocation) -> Vec<String> {
    let Some(status) = &job.status else {
        return Vec::new();
    };
    let shown_max = if wide { usize::MAX } else { ERRORS_MAX };
    let samples = status.sample_errors.iter().take(shown_max);
    let mut lines: Vec<String> = samples
        .map(|sample| {
            let SampleError {
                position,
                code,
                message,
            } = sample;
            format!("{position} {code}: {message}")
        })
        .collect();
    let failed = status.rows.map_or(0, |rows| rows.failed);
    if !lines.is_empty() && failed > lines.len() as u64 {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let command = invocation.command(&format!("errors batchjob/{name}"));
        lines.push(format!("all {} of them: {command}", count(failed)));
    }
    lines
}

fn conditions(job: &BatchJob, wide: bool, now: Timestamp) -> Vec<String> {
    let conditions = job.status.iter().flat_map(|status| &status.conditions);
    let chars_max = if wide { usize::MAX } else { MESSAGE_CHARS_MAX };
    let rows: Vec<Vec<String>> = conditions
        .map(|condition| {
            vec![
                condition.type_.clone(),
                condition.status.clone(),
                condition.reason.clone(),
                age(Some(&condition.last_transition_time), now),
                clipped(&condition.message, chars_max),
            ]
        })
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    table(&["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], rows)
}

/// Events, the oldest first.
pub fn events_table(
    found: &Result<Vec<k8s_openapi::api::core::v1::Event>, String>,
    wide: bool,
    now: Timestamp,
) -> Vec<String> {
    let found = match found {
        Ok(found) => found,
        Err(reason) => return vec![reason.clone()],
    };
    let unshown = if wide {
        0
    } else {
        found.len().saturating_sub(EVENTS_MAX)
    };
    let rows: Vec<_> = found
        .iter()
        .skip(unshown)
        .map(|event| events::row(event, wide, now))
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    table(&events::HEADER, rows)
}

fn what_to_do(seen: &Seen, invocation: &Invocation) -> Vec<String> {
    let Seen {
        job,
        pods,
        events: _,
    } = seen;
    let mut hints: Vec<String> = hints::for_job(job, invocation).into_iter().collect();
    hints.extend(hints::for_budget(job));
    if end(job).is_none() {
        for pod in pods.iter().flatten() {
            let state = worker(pod).state;
            let hint = hints::for_pod(&state).map(|hint| format!("{state}: {hint}"));
            hints.extend(hint.filter(|hint| !hints.contains(hint)));
        }
    }
    hints
}

/// The commands that come next.
pub fn next(job: &BatchJob, invocation: &Invocation) -> Vec<String> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let failed = job
        .status
        .as_ref()
        .and_then(|it| it.rows)
        .map_or(0, |it| it.failed);
    let mut words = match end(job) {
        None => vec![
            format!("status {name} --watch"),
            format!("logs {name} --follow"),
        ],
        Some(End::Completed | End::ShardsFailed) => {
            vec![format!("results batchjob/{name} --limit 3")]
        }
        Some(End::Failed) => vec![format!("logs {name}")],
    };
    if end(job).is_some_and(End::is_finished) && failed > 0 {
        words.push(format!("errors batchjob/{name}"));
    }
    words
        .iter()
        .map(|words| invocation.command(words))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::show::testing::{job, now};

    fn seen(status: &str, reason: &str) -> Seen {
        let pod = json!({
            "metadata": {"name": "minilm-inference-1", "creationTimestamp": "2026-01-02T03:00:10Z"},
            "spec": {"nodeName": "node-1", "containers": [{"name": "server"}]},
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "server", "ready": false, "restartCount": 0, "image": "i", "imageID": "i",
                "state": {"waiting": {"reason": "ImagePullBackOff"}},
            }]},
        });
        let event = json!({
            "metadata": {}, "type": "Normal", "reason": "Running", "message": "shards",
            "involvedObject": {"kind": "BatchJob", "name": "embed"},
            "lastTimestamp": "2026-01-02T03:01:00Z",
        });
        Seen {
            job: job(status, reason),
            pods: Ok(vec![serde_json::from_value(pod).unwrap()]),
            events: Ok(vec![serde_json::from_value(event).unwrap()]),
        }
    }

    fn text(seen: &Seen) -> String {
        lines(seen, false, &Invocation::new(), now()).join("\n")
    }

    #[test]
    fn a_running_job_is_told_whole() {
        let expected = "\
batchjob/embed in tenant: Running: as it is
  service   minilm
  output    s3://bucket/embed
  run       1
  started   2026-01-02T03:00:10Z (60s ago)
  duration  60s
  progress  41%
  rows      1,200 succeeded, 3 failed, 0 skipped
  shards    41 of 100 committed, 1 given up
  tokens    54,321
  rate      282.5 rows/s
  eta       2026-01-02T03:05:00Z (3m50s left)
  workers   2
workers:
  NAME                NODE    PHASE             READY  RESTARTS  AGE
  minilm-inference-1  node-1  ImagePullBackOff  0/1    0         60s
failed rows:
  s3://bucket/rows.jsonl@10 invalid_json: no JSON
  all 3 of them: millrace errors batchjob/embed
conditions:
  TYPE       STATUS   REASON   SINCE  MESSAGE
  Succeeded  Unknown  Running  60s    as it is
events:
  AGE  TYPE    REASON   OBJECT          MESSAGE
  10s  Normal  Running  batchjob/embed  shards
what to do:
  ImagePullBackOff: the image cannot be had: look at images.* of the chart's values, and at the pull secrets
next:
  millrace status embed --watch
  millrace logs embed --follow";
        assert_eq!(text(&seen("Unknown", "Running")), expected);
    }

    #[test]
    fn what_calls_cost_is_told_and_what_they_will_cost_until_the_end() {
        let text = |status: &str, reason: &str| {
            let mut job = serde_json::to_value(job(status, reason)).unwrap();
            job["status"]["cost"] = json!({"total": "1.75", "perRow": "0.0015", "currency": "EUR"});
            job["status"]["estimate"] = json!({
                "rows": 4_000, "tokensLeast": 100_000, "tokensMost": 200_000,
                "costLeast": "4", "costMost": "6.5", "currency": "EUR",
            });
            let job = serde_json::from_value(job).unwrap();
            short(&job, &Invocation::new(), now()).join("\n")
        };
        let cost = "  tokens    54,321\n  cost      1.75 EUR (0.0015 a row)\n";
        let estimate = "  estimate  100,000 to 200,000 tokens, 4 to 6.5 EUR for 4,000 rows\n";
        let running = text("Unknown", "Running");
        assert!(running.contains(&format!("{cost}{estimate}")), "{running}");
        let over = text("True", "Completed");
        assert!(over.contains(cost) && !over.contains("estimate"), "{over}");
    }

    #[test]
    fn shards_of_a_job_that_was_ended_early_are_not_done() {
        let mut job = job("False", "Cancelled");
        job.status.as_mut().unwrap().failed_indexes = Some("74-99".to_owned());
        let text = short(&job, &Invocation::new(), now()).join("\n");
        assert!(text.contains("41 of 100 committed, 1 not done"), "{text}");
        assert!(text.contains("\n  not done  74-99"), "{text}");
    }

    #[test]
    fn what_this_account_may_not_read_is_said_and_hides_nothing_else() {
        let mut seen = seen("Unknown", "Running");
        seen.pods = Err("no right to list pods".to_owned());
        seen.events = Err("no right to list events".to_owned());
        let text = text(&seen);
        for expected in [
            "workers:\n  no right to list pods",
            "events:\n  no right",
            "41%",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_job_that_is_over_leads_to_its_results_and_errors() {
        let job = job("True", "Completed");
        assert_eq!(
            next(&job, &Invocation::new()),
            [
                "millrace results batchjob/embed --limit 3",
                "millrace errors batchjob/embed"
            ]
        );
        let text = short(&job, &Invocation::new(), now()).join("\n");
        assert!(!text.contains("eta"), "{text}");
    }

    #[test]
    fn a_job_that_no_operator_saw_says_so_and_has_no_empty_sections() {
        let mut seen = seen("Unknown", "Running");
        seen.job.status = None;
        seen.events = Ok(Vec::new());
        let text = text(&seen);
        assert!(text.contains("no operator has looked at it yet"), "{text}");
        assert!(
            !text.contains("conditions:") && !text.contains("events:"),
            "{text}"
        );
    }
}
