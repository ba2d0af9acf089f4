//! Which run a job is in, and whether it is over. Pure, from spec and status alone.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use millrace_crds::batch_job::RowCounts;
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_leases::Snapshot;
use millrace_leases::limits::Account;
use millrace_protocol::lease;
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use millrace_protocol::tally::Rows;

use crate::conditions::find;

/// Reason of a job whose budget is spent.
const BUDGET_SPENT: &str = "BudgetSpent";

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The run that it is in, or that it ended with.
    pub run: RunNumber,
    /// Whether it is over.
    pub is_over: bool,
    /// Whether the run is one that the status does not speak of yet.
    pub is_new: bool,
    /// Whether the run goes on that ended when its budget was spent, since the budget was raised.
    pub is_resumed: bool,
}

/// Where the job stands. A job that is over is in its next run as soon as it asks for one.
pub fn standing(job: &BatchJob) -> Standing {
    let status = job.status.as_ref();
    let run = status.and_then(|status| status.run).unwrap_or(FIRST_RUN);
    let is_over = has_ended(job);
    let asked_for = FIRST_RUN + job.spec.rerun_failed;
    if is_over && run < asked_for && !job.spec.cancel {
        return Standing {
            run: run + 1,
            is_over: false,
            is_new: true,
            is_resumed: false,
        };
    }
    let is_resumed = is_over && !job.spec.cancel && has_more_to_spend(job);
    Standing {
        run,
        is_over: is_over && !is_resumed,
        is_new: false,
        is_resumed,
    }
}

/// Whether a job that ended when its budget was spent may spend more by now.
fn has_more_to_spend(job: &BatchJob) -> bool {
    let spent = job.status.as_ref().and_then(|status| status.cost.as_ref());
    let budget = job.spec.budget.as_ref();
    let is_more = match (budget, spent) {
        (Some(budget), Some(spent)) => budget.max_cost > spent.total,
        (None, _) => true,
        (Some(_), None) => false,
    };
    reason(job) == Some(BUDGET_SPENT) && is_more
}

/// What its status says of the job's success.
pub fn succeeded(status: &BatchJobStatus) -> Option<&Condition> {
    find(&status.conditions, "Succeeded")
}

/// Why the job is where it is, once it was visited.
pub fn reason(job: &BatchJob) -> Option<&str> {
    let succeeded = succeeded(job.status.as_ref()?)?;
    Some(&succeeded.reason)
}

/// Shards that wait for workers or are with one, of a job whose shards are being worked off.
pub fn shards_left(job: &BatchJob) -> Option<u32> {
    if !matches!(reason(job), Some("Running" | "LeasesUnavailable")) {
        return None;
    }
    Some(job.status.as_ref()?.shards?.left())
}

/// A job that ended either succeeded or did not; until then nobody knows.
fn has_ended(job: &BatchJob) -> bool {
    let succeeded = job.status.as_ref().and_then(succeeded);
    succeeded.is_some_and(|condition| condition.status != "Unknown")
}

/// Why a job is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// `spec.cancel`.
    Cancelled,
    /// `spec.activeDeadlineSeconds` are over.
    DeadlineExceeded,
    /// More rows failed than `spec.maxFailedRows`.
    TooManyFailedRows,
    /// More shards were given up than `spec.maxFailedIndexes`.
    TooManyFailedIndexes,
    /// `spec.budget.maxCost` is spent.
    BudgetSpent,
}

impl GiveUp {
    /// Reason of the condition once it is given up.
    pub fn reason(self) -> &'static str {
        match self {
            GiveUp::Cancelled => "Cancelled",
            GiveUp::DeadlineExceeded => "DeadlineExceeded",
            GiveUp::TooManyFailedRows => "TooManyFailedRows",
            GiveUp::TooManyFailedIndexes => "TooManyFailedIndexes",
            GiveUp::BudgetSpent => BUDGET_SPENT,
        }
    }

    /// What is said of shards that were not worked off.
    pub fn of_shards(self) -> &'static str {
        match self {
            GiveUp::Cancelled => "the job was cancelled before this shard was done",
            GiveUp::DeadlineExceeded => {
                "spec.activeDeadlineSeconds were over before this shard was done"
            }
            GiveUp::TooManyFailedRows => lease::TOO_MANY_FAILED,
            GiveUp::TooManyFailedIndexes => lease::TOO_MANY_FAILED_INDEXES,
            GiveUp::BudgetSpent => lease::BUDGET_SPENT,
        }
    }
}

/// Whether the job is to be given up. A job that rests has no deadline running.
pub fn give_up(
    job: &BatchJob,
    standing: Standing,
    leases: Option<&Snapshot>,
    account: Option<Account>,
    now: &Time,
) -> Option<GiveUp> {
    if job.spec.cancel {
        return Some(GiveUp::Cancelled);
    }
    if let Some(give_up) = too_many_failed(job, standing, leases) {
        return Some(give_up);
    }
    let budget = job.spec.budget.as_ref().zip(account);
    if budget.is_some_and(|(budget, account)| account.is_spent(budget.max_cost)) {
        return Some(GiveUp::BudgetSpent);
    }
    let rest = until_deadline(job, standing, now)?;
    (rest == Duration::ZERO && !job.spec.suspend).then_some(GiveUp::DeadlineExceeded)
}

/// Whether more failed than may, by the leases. Once these are forgotten the status counts, so that an end
/// that was cut off ends for the reason for which it began.
fn too_many_failed(
    job: &BatchJob,
    standing: Standing,
    leases: Option<&Snapshot>,
) -> Option<GiveUp> {
    let is_of_run = !standing.is_new && !standing.is_resumed;
    let status = job.status.as_ref().filter(|_| is_of_run);
    let (rows, shards_failed) = match leases.filter(|leases| leases.known) {
        Some(leases) => (leases.tally.rows, leases.dead),
        None => {
            let RowCounts {
                succeeded,
                failed,
                skipped,
            } = status.and_then(|status| status.rows).unwrap_or_default();
            let shards = status.and_then(|status| status.shards).unwrap_or_default();
            let rows = Rows {
                succeeded,
                failed,
                skipped,
            };
            (rows, u64::from(shards.failed))
        }
    };
    let rows_max = job.spec.failed_rows_max();
    if rows_max.is_some_and(|max| max.is_exceeded(rows.failed, rows.total())) {
        return Some(GiveUp::TooManyFailedRows);
    }
    let shards_max = job.spec.max_failed_indexes.map(u64::from);
    let is_exceeded = shards_max.is_some_and(|max| shards_failed > max);
    is_exceeded.then_some(GiveUp::TooManyFailedIndexes)
}

/// How long the job may still take, if it has a deadline and has begun.
pub fn until_deadline(job: &BatchJob, standing: Standing, now: &Time) -> Option<Duration> {
    let seconds = job.spec.active_deadline_seconds?;
    if standing.is_new {
        return None;
    }
    let began = job.status.as_ref()?.start_time.as_ref()?;
    Some(left(began, seconds, now))
}

/// How long the object of a job that is over still stays, if it goes by itself.
pub fn until_deletion(job: &BatchJob, now: &Time) -> Option<Duration> {
    let seconds = job.spec.ttl_seconds_after_finished?;
    let status = job.status.as_ref()?;
    let succeeded = succeeded(status)?;
    let ended = status.completion_time.as_ref();
    Some(left(
        ended.unwrap_or(&succeeded.last_transition_time),
        seconds,
        now,
    ))
}

fn left(since: &Time, seconds: u32, now: &Time) -> Duration {
    let passed = now.0.duration_since(since.0).as_millis();
    let passed = Duration::from_millis(u64::try_from(passed).unwrap_or(0));
    Duration::from_secs(u64::from(seconds)).saturating_sub(passed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(rerun_failed: u32, run: u32, succeeded: (&str, &str), expected: (u32, bool, bool)) {
        let job: BatchJob = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job"},
            "spec": {
                "serviceRef": {"name": "service"}, "rerunFailed": rerun_failed,
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
            "status": {"run": run, "conditions": [{
                "type": "Succeeded", "status": succeeded.0, "reason": succeeded.1, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap();
        let Standing {
            run,
            is_over,
            is_new,
            is_resumed: _,
        } = standing(&job);
        assert_eq!((run, is_over, is_new), expected, "{succeeded:?}");
    }

    #[test]
    fn shards_that_wait_for_others_are_no_work_for_pods() {
        for (waiting, left) in [(100, 89), (0, 189)] {
            let status = json!({
                "conditions": [{
                    "type": "Succeeded", "status": "Unknown", "reason": "Running", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
                "shards": {"total": 200, "committed": 10, "failed": 1, "waiting": waiting},
            });
            let mut job: BatchJob = serde_json::from_value(json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
                "metadata": {"name": "job"},
                "spec": {
                    "serviceRef": {"name": "service"},
                    "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
                },
            }))
            .unwrap();
            job.status = serde_json::from_value(status).unwrap();
            assert_eq!(shards_left(&job), Some(left));
        }
    }

    #[test]
    fn a_job_that_is_over_begins_its_next_run_when_asked_to() {
        check(0, 1, ("Unknown", "Running"), (1, false, false));
        check(0, 1, ("True", "Completed"), (1, true, false));
        check(1, 1, ("True", "Completed"), (2, false, true));
        check(1, 2, ("Unknown", "Running"), (2, false, false));
        check(1, 2, ("False", "ShardsFailed"), (2, true, false));
        check(3, 2, ("True", "Completed"), (3, false, true));
        check(1, 1, ("Unknown", "Running"), (1, false, false));
    }
}
