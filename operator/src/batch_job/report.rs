//! Writes the status, once and only when it changed, and an Event where the job moved on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::EventType;
use millrace_crds::batch_job::{RowCounts, SampleError, ShardCounts};
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_protocol::report::{ErrorSample, Report};
use millrace_protocol::tally::{Rows, Tally};
use serde_json::json;

use super::apply::Applied;
use super::decide::{Decision, Finished, Phase};
use super::observe::{Seen, Step};
use super::trace;
use crate::apply::write_status;
use crate::conditions::{Is, Said, find, written};
use crate::context::Context;
use crate::visit::VisitError;

/// Writes the status if it changed.
pub async fn report(
    ctx: &Context,
    job: &BatchJob,
    seen: &Seen,
    decision: &Decision,
    _applied: Applied,
) -> Result<(), VisitError> {
    if decision.phase == Phase::Over {
        return Ok(());
    }
    let before = job.status.clone().unwrap_or_default();
    let status = status(job, seen, &decision.phase, ctx.now());
    if status == before {
        return Ok(());
    }
    write_status(&ctx.client, job, json!(status))
        .await
        .map_err(VisitError::Report)?;
    trace::write_whole(job, &status, ctx.now());
    let reason = |status: &BatchJobStatus| {
        find(&status.conditions, "Succeeded").map(|it| (it.reason.clone(), it.message.clone()))
    };
    let (old, new) = (reason(&before), reason(&status));
    if let Some((reason, message)) = new
        && old.is_none_or(|(old, _)| old != reason)
    {
        let is_bad = find(&status.conditions, "Stalled").is_some_and(|it| it.status == "True");
        let kind = if is_bad {
            EventType::Warning
        } else {
            EventType::Normal
        };
        ctx.say(job, kind, &reason, &message).await;
    }
    Ok(())
}

/// The status after a visit. Pure.
fn status(job: &BatchJob, seen: &Seen, phase: &Phase, now: Time) -> BatchJobStatus {
    let before = job.status.clone().unwrap_or_default();
    let generation = job.metadata.generation.unwrap_or_default();
    let said = conditions(phase);
    let mut status = BatchJobStatus {
        conditions: written(said, &before.conditions, generation, now.clone()),
        observed_generation: Some(generation),
        output: Some(job.spec.output.uri.clone()),
        ..before
    };
    if let (None, Step::Ended(Report::Planned { shards, committed })) =
        (&status.start_time, &seen.plan)
    {
        status.start_time = Some(now.clone());
        status.shards = Some(ShardCounts {
            total: *shards,
            committed: *committed,
            failed: 0,
        });
    }
    match (phase, seen.leases) {
        (Phase::Finished(finished), _) => finish(&mut status, finished, now),
        (_, Some(leases)) if leases.known => {
            let total = leases.open + leases.leased + leases.done + leases.dead;
            let shards = ShardCounts {
                total: total as u32,
                committed: leases.done as u32,
                failed: leases.dead as u32,
            };
            count(&mut status, shards, leases.tally, now);
        }
        _ => {}
    }
    status
}

fn finish(status: &mut BatchJobStatus, finished: &Finished, now: Time) {
    let Finished {
        complete: _,
        shards,
        failed_shards,
        tally,
        sample_errors,
    } = finished;
    let shards = ShardCounts {
        total: *shards,
        committed: shards - failed_shards,
        failed: *failed_shards,
    };
    count(status, shards, *tally, now.clone());
    status.completion_time = Some(now);
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

fn count(status: &mut BatchJobStatus, shards: ShardCounts, tally: Tally, now: Time) {
    let Tally { rows, tokens } = tally;
    let done = shards.committed + shards.failed;
    let percent = (u64::from(done) * 100).checked_div(u64::from(shards.total));
    status.progress = Some(format!("{}%", percent.unwrap_or(100)));
    let seconds = status
        .start_time
        .as_ref()
        .map(|start| now.0.duration_since(start.0).as_secs_f64());
    // While nothing moves the rate stays as well: a status that changes by the clock alone would be
    // written once a second for ever.
    if status.tokens != Some(tokens) {
        status.rows_per_second = seconds
            .filter(|seconds| *seconds > 0.0)
            .map(|seconds| (rows.total() as f64 / seconds * 10.0).round() / 10.0);
    }
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

/// What the four conditions say.
fn conditions(phase: &Phase) -> Vec<Said> {
    use Is::{False, True, Unknown};
    let waits = |what: &str, waits: &Option<String>| match waits {
        Some(reason) => format!("{what}; its pod waits: {reason}"),
        None => what.to_owned(),
    };
    let (succeeded, reason, message) = match phase {
        Phase::Over => unreachable!("a job that is over is not reported again"),
        Phase::Refused(refused) => (Unknown, refused.reason, refused.message.clone()),
        Phase::Suspended => (
            Unknown,
            "Suspended",
            "spec.suspend is true; what is done stays".to_owned(),
        ),
        Phase::Planning(reason) => (
            Unknown,
            "Planning",
            waits("the run is being planned", reason),
        ),
        Phase::Running => (Unknown, "Running", "shards are being worked off".to_owned()),
        Phase::LeasesAway => (
            Unknown,
            "LeasesUnavailable",
            "the Redis of the leases cannot be reached; work goes on once it is back".to_owned(),
        ),
        Phase::Finishing(reason) => (
            Unknown,
            "Finishing",
            waits("the manifest is being written", reason),
        ),
        Phase::Finished(finished) if finished.complete => (
            True,
            "Completed",
            "every row ended as a result or as a reported error".to_owned(),
        ),
        Phase::Finished(finished) => (
            False,
            "ShardsFailed",
            format!(
                "{} of {} shards were given up; manifest.json names them with their reasons",
                finished.failed_shards, finished.shards
            ),
        ),
        Phase::Failed { reason, message } => (False, *reason, message.clone()),
    };
    let is_stalled = matches!(phase, Phase::Refused(_)) || succeeded == False;
    let is_moving = matches!(
        phase,
        Phase::Planning(_) | Phase::Running | Phase::LeasesAway | Phase::Finishing(_)
    );
    let flag = |yes| if yes { True } else { False };
    let said = |kind, is| Said {
        kind,
        is,
        reason,
        message: message.clone(),
    };
    vec![
        said("Succeeded", succeeded),
        said("Ready", flag(succeeded == True)),
        said("Reconciling", flag(is_moving)),
        said("Stalled", flag(is_stalled)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_sets_every_condition_with_a_reason() {
        let phases = [
            Phase::Suspended,
            Phase::Planning(Some("ImagePullBackOff".into())),
            Phase::Running,
            Phase::LeasesAway,
            Phase::Finishing(None),
            Phase::Failed {
                reason: "PlanFailed",
                message: "no such bucket".into(),
            },
        ];
        for phase in phases {
            let said = conditions(&phase);
            let kinds: Vec<_> = said.iter().map(|said| said.kind).collect();
            assert_eq!(kinds, ["Succeeded", "Ready", "Reconciling", "Stalled"]);
            assert!(
                said.iter()
                    .all(|said| !said.reason.is_empty() && !said.message.is_empty())
            );
        }
    }
}
