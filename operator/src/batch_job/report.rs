//! Writes the status, once and only when it changed, and an Event where the job moved on.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::SignedDuration;
use kube::runtime::events::EventType;
use millrace_crds::batch_job::{Estimate, RouteCounts, RowCounts, SampleError, ShardCounts, Spent};
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_leases::Snapshot;
use millrace_protocol::report::{ErrorSample, Report};
use millrace_protocol::tally::{Rows, Tally};

use super::apply::Applied;
use super::decide::{Decision, Finished, Phase};
use super::meter::Pace;
use super::observe::{Seen, Step};
use super::standing::{Standing, succeeded};
use super::{said, trace};
use crate::apply::write_status;
use crate::conditions::{find, written};
use crate::context::Context;
use crate::visit::VisitError;

/// Writes the status if it changed. One that was written a moment ago is left for later: returns after
/// which pause.
pub async fn report(
    ctx: &Context,
    job: &BatchJob,
    seen: &Seen,
    decision: &Decision,
    _applied: Applied,
) -> Result<Option<Duration>, VisitError> {
    let before = job.status.clone().unwrap_or_default();
    let status = match decision.phase {
        Phase::Expired => return Ok(None),
        Phase::Over => of_generation(&before, job.metadata.generation),
        _ => status(job, seen, &decision.phase),
    };
    if status == before {
        return Ok(None);
    }
    let of_job = ctx.of_job(job);
    // Shards may be committed by the hundred in a second, and a user may change a job as often.
    if let Some(wait) = of_job.status_wait(Instant::now()) {
        return Ok(Some(wait));
    }
    let written = write_status(&ctx.client, job, &before, &status).await;
    of_job.note_status(Instant::now());
    written.map_err(VisitError::Report)?;
    if decision.phase.is_end() {
        trace::write_whole(job, &status, ctx.now());
    }
    if let Some(Condition {
        reason, message, ..
    }) = succeeded(&status)
        && succeeded(&before).is_none_or(|before| before.reason != *reason)
    {
        let is_bad = find(&status.conditions, "Stalled").is_some_and(|it| it.status == "True");
        let kind = if is_bad {
            EventType::Warning
        } else {
            EventType::Normal
        };
        ctx.say(job, kind, reason, message).await;
    }
    Ok(None)
}

/// The status of a job that is over, for a spec that was changed since: nothing comes of the change,
/// and whoever waits for it to be seen waits no longer. Pure.
fn of_generation(before: &BatchJobStatus, generation: Option<i64>) -> BatchJobStatus {
    let mut status = before.clone();
    status.observed_generation = generation;
    for condition in &mut status.conditions {
        condition.observed_generation = generation;
    }
    status
}

/// The status that a visit goes on from: without what is not true any more. Pure.
fn before(job: &BatchJob, standing: Standing) -> BatchJobStatus {
    let mut before = job.status.clone().unwrap_or_default();
    if standing.is_new {
        // Nothing of the run before is true of this one.
        before = BatchJobStatus {
            conditions: before.conditions,
            ..BatchJobStatus::default()
        };
    }
    if standing.is_resumed {
        before.completion_time = None;
        before.sample_errors = Vec::new();
        // What the end before counted as failed was not done, and is not given up any more.
        before.failed_indexes = None;
        before.shards = before.shards.map(|shards| ShardCounts {
            failed: 0,
            ..shards
        });
        before.rows = before.rows.map(|rows| RowCounts { failed: 0, ..rows });
        before.routes = Vec::new();
        before.start_time = None;
    }
    before
}

/// The status after a visit. Pure.
fn status(job: &BatchJob, seen: &Seen, phase: &Phase) -> BatchJobStatus {
    let now = seen.now.clone();
    let before = before(job, seen.standing);
    let generation = job.metadata.generation.unwrap_or_default();
    let said = said::conditions(job, phase);
    let mut status = BatchJobStatus {
        conditions: written(said, &before.conditions, generation, now.clone()),
        observed_generation: Some(generation),
        run: Some(seen.standing.run),
        output: Some(job.spec.output.uri.clone()),
        workers: workers(seen, phase),
        eta: None,
        ..before.clone()
    };
    match phase {
        // As for any Job of Kubernetes: its deadline begins anew when it goes on.
        Phase::Suspended => status.start_time = None,
        Phase::Refused(_) => {}
        _ => {
            status.start_time.get_or_insert(now.clone());
        }
    }
    if let Step::Ended(Report::Planned {
        shards,
        committed,
        forecast,
    }) = &seen.plan
    {
        status.shards.get_or_insert(ShardCounts {
            total: *shards,
            committed: *committed,
            failed: 0,
            waiting: 0,
        });
        let forecast = forecast.as_ref().map(Estimate::from);
        status.estimate = status.estimate.or(forecast);
    }
    match (phase, seen.leases) {
        (Phase::Finished(finished) | Phase::GivenUp(_, Some(finished)), _) => {
            finish(&mut status, finished, now);
        }
        (Phase::GivenUp(_, None) | Phase::Failed { .. }, _) => status.completion_time = Some(now),
        (_, Some(leases)) if leases.known => get_on(&mut status, &before, leases, seen),
        _ => {}
    }
    status.cost = spent(&status, seen, phase).or(status.cost);
    status
}

/// Notes how far a run is that is not over, and how fast it gets on.
fn get_on(status: &mut BatchJobStatus, before: &BatchJobStatus, leases: Snapshot, seen: &Seen) {
    let total = leases.open + leases.leased + leases.done + leases.dead;
    // Shards of duplicates are planned, and queued when all others have ended.
    let planned = status.shards.map_or(0, |shards| shards.total);
    let shards = ShardCounts {
        total: planned.max(total as u32),
        committed: leases.done as u32,
        failed: leases.dead as u32,
        waiting: planned.saturating_sub(total as u32),
    };
    let is_same = status.tokens == Some(leases.tally.tokens)
        && status.shards == Some(shards)
        && status.failed_indexes == seen.failed_indexes;
    if is_same {
        // While nothing moves the rate stays as well: a status that changes by the clock alone would
        // be written once a second for ever.
        status.eta = before.eta.clone();
    } else {
        count(status, shards, leases.tally);
        status.failed_indexes = seen.failed_indexes.clone();
        status.rows_per_second = seen.pace.map(|pace| rounded(pace.rows));
        status.eta = seen.pace.and_then(|pace| eta(shards, pace, &seen.now));
    }
}

/// What the job has paid, as far as anybody knows: by the account that its workers share, which knows
/// of calls whose shards have no commit yet, or by the commits, which outlive it.
fn spent(status: &BatchJobStatus, seen: &Seen, phase: &Phase) -> Option<Spent> {
    let currency = &seen.pricing()?.currency;
    let committed = match phase {
        Phase::Finished(finished) | Phase::GivenUp(_, Some(finished)) => finished.tally.cost,
        _ => seen.leases?.tally.cost,
    };
    let paid = seen.account.map(|account| account.paid);
    let rows = status.rows.unwrap_or_default();
    let rows = rows.succeeded + rows.failed + rows.skipped;
    Some(Spent::of(
        committed.max(paid.unwrap_or_default()),
        rows,
        currency,
    ))
}

/// Pods that work for the job's service while the job is at work.
fn workers(seen: &Seen, phase: &Phase) -> Option<u32> {
    if !matches!(phase, Phase::Running | Phase::LeasesAway) {
        return None;
    }
    let service = seen.service.as_ref()?;
    service.status.as_ref()?.ready_replicas
}

/// When the work is done at this pace.
fn eta(shards: ShardCounts, pace: Pace, now: &Time) -> Option<Time> {
    // Those that wait copy what is there by then, which takes next to no time.
    let seconds = (f64::from(shards.left()) / pace.shards).ceil() as i64;
    let eta = now.0.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    Some(Time(eta))
}

fn rounded(per_second: f64) -> f64 {
    (per_second * 10.0).round() / 10.0
}

fn finish(status: &mut BatchJobStatus, finished: &Finished, now: Time) {
    let Finished {
        complete: _,
        shards,
        failed_shards,
        failed_indexes,
        tally,
        routes,
        sample_errors,
        warning: _,
    } = finished;
    let shards = ShardCounts {
        total: *shards,
        committed: shards - failed_shards,
        failed: *failed_shards,
        waiting: 0,
    };
    count(status, shards, *tally);
    status.failed_indexes = failed_indexes.clone();
    let seconds = status
        .start_time
        .as_ref()
        .map(|start| now.0.duration_since(start.0).as_secs_f64());
    status.rows_per_second = seconds
        .filter(|seconds| *seconds > 0.0)
        .map(|seconds| rounded(tally.rows.total() as f64 / seconds));
    status.completion_time = Some(now);
    status.routes = routes.iter().map(RouteCounts::from).collect();
    let samples = sample_errors.iter().map(|sample| {
        let ErrorSample {
            position,
            code,
            message,
        } = sample.clone();
        SampleError {
            position,
            code,
            message,
        }
    });
    status.sample_errors = samples.collect();
}

fn count(status: &mut BatchJobStatus, shards: ShardCounts, tally: Tally) {
    let Tally {
        rows,
        tokens,
        cost: _,
    } = tally;
    // What was given up is not done, least of all by a job that was ended early.
    let percent = (u64::from(shards.committed) * 100).checked_div(u64::from(shards.total));
    status.progress = Some(format!("{}%", percent.unwrap_or(100)));
    status.shards = Some(shards);
    status.tokens = Some(tokens);
    let Rows {
        succeeded,
        failed,
        skipped,
    } = rows;
    status.rows = Some(RowCounts {
        succeeded,
        failed,
        skipped,
    });
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
