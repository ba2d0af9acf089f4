//! What to do about a job, from what was seen of it. Pure.

use std::time::Duration;

use millrace_crds::BatchJob;
use millrace_leases::Snapshot;
use millrace_protocol::report::{ErrorSample, Report};
use millrace_protocol::tally::Tally;

use super::check::{Checked, Refused};
use super::observe::{Seen, Step};
use crate::conditions::find;
use crate::visit::REJECTED;

/// How often a job at work is visited: its counters move without an event.
const AT_WORK: Duration = Duration::from_secs(1);

/// How often a job is visited that waits for something that gives no event.
const WAITING: Duration = Duration::from_secs(10);

/// What to do, and what to say.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Where the job stands.
    pub phase: Phase,
    /// What the workers are told.
    pub workers: Workers,
    /// The step that should be there.
    pub make: Option<MadeStep>,
    /// The step that should go, so that it can be made again.
    pub unmake: Option<&'static str>,
    /// When to look again without an event.
    pub again_in: Option<Duration>,
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// It is over, as its status says already.
    Over,
    /// It cannot begin before something changes.
    Refused(Refused),
    /// It rests.
    Suspended,
    /// The plan is being made; with what it waits for.
    Planning(Option<String>),
    /// Shards are open or leased.
    Running,
    /// The lease store is away: work goes on where it can.
    LeasesAway,
    /// The manifest is being written.
    Finishing(Option<String>),
    /// The manifest is written.
    Finished(Finished),
    /// A step failed for good.
    Failed {
        /// `PlanFailed` or `FinishFailed`.
        reason: &'static str,
        /// Why.
        message: String,
    },
}

/// What finish reported.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Whether every shard is committed.
    pub complete: bool,
    /// Shards of the plan.
    pub shards: u32,
    /// Shards that were given up.
    pub failed_shards: u32,
    /// Sums over the commits.
    pub tally: Tally,
    /// The first few row errors.
    pub sample_errors: Vec<ErrorSample>,
}

/// What the workers of the service are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// To work on the job.
    Work,
    /// To give it back.
    Rest,
}

/// A step that should be there, with the service whose settings it takes.
#[derive(Debug, Clone)]
pub struct MadeStep {
    /// `plan` or `finish`.
    pub step: &'static str,
    /// The job's service.
    pub checked: Checked,
}

/// Decides.
pub fn decide(job: &BatchJob, checked: &Result<Checked, Refused>, seen: &Seen) -> Decision {
    let rest = |phase, again_in| Decision {
        phase,
        workers: Workers::Rest,
        make: None,
        unmake: None,
        again_in,
    };
    if is_over(job) {
        return rest(Phase::Over, None);
    }
    if job.spec.suspend {
        // While the lease store is away, workers cannot be told to rest.
        let again_in = seen.leases.is_none().then_some(WAITING);
        return rest(Phase::Suspended, again_in);
    }
    let checked = match checked {
        Ok(checked) => checked,
        Err(refused) => return rest(Phase::Refused(refused.clone()), Some(WAITING)),
    };
    let make = |step| {
        Some(MadeStep {
            step,
            checked: checked.clone(),
        })
    };
    match &seen.plan {
        Step::Absent => Decision {
            make: make("plan"),
            ..rest(Phase::Planning(None), None)
        },
        // Its pods' reasons to wait change without an event of the Job.
        Step::Running(waits) => rest(Phase::Planning(waits.clone()), Some(AT_WORK)),
        Step::Failed(message) => rest(
            Phase::Failed {
                reason: "PlanFailed",
                message: message.clone(),
            },
            None,
        ),
        Step::Ended(_) => at_work(seen, make),
    }
}

/// What to say of a job whose step the API server will not have. Another visit tries again.
pub fn rejected(why: &str) -> Decision {
    let refused = Refused {
        reason: REJECTED,
        message: why.to_owned(),
    };
    Decision {
        phase: Phase::Refused(refused),
        workers: Workers::Rest,
        make: None,
        unmake: None,
        again_in: Some(WAITING),
    }
}

/// Decides about a job that is planned.
fn at_work(seen: &Seen, make: impl Fn(&'static str) -> Option<MadeStep>) -> Decision {
    let decision = |phase, workers| Decision {
        phase,
        workers,
        make: None,
        unmake: None,
        again_in: Some(AT_WORK),
    };
    match &seen.finish {
        Step::Ended(Report::Finished {
            complete,
            shards,
            failed_shards,
            tally,
            sample_errors,
        }) => {
            let finished = Finished {
                complete: *complete,
                shards: *shards,
                failed_shards: *failed_shards,
                tally: *tally,
                sample_errors: sample_errors.clone(),
            };
            return Decision {
                again_in: None,
                ..decision(Phase::Finished(finished), Workers::Rest)
            };
        }
        Step::Failed(message) => {
            let phase = Phase::Failed {
                reason: "FinishFailed",
                message: message.clone(),
            };
            return Decision {
                again_in: None,
                ..decision(phase, Workers::Rest)
            };
        }
        // Commits were missing and their shards are queued again.
        Step::Ended(_) => {
            return Decision {
                unmake: Some("finish"),
                ..decision(Phase::Running, Workers::Work)
            };
        }
        Step::Running(waits) => return decision(Phase::Finishing(waits.clone()), Workers::Rest),
        Step::Absent => {}
    }
    match seen.leases {
        None => decision(Phase::LeasesAway, Workers::Work),
        // The lease store lost the run: planning again reads the commits and queues what is open.
        Some(Snapshot { known: false, .. }) => Decision {
            unmake: Some("plan"),
            ..decision(Phase::Planning(None), Workers::Work)
        },
        Some(Snapshot {
            open: 0, leased: 0, ..
        }) => Decision {
            make: make("finish"),
            ..decision(Phase::Finishing(None), Workers::Rest)
        },
        Some(_) => decision(Phase::Running, Workers::Work),
    }
}

/// Whether the status says that the job is over: nothing of it is looked at again.
fn is_over(job: &BatchJob) -> bool {
    let status = job.status.as_ref();
    let succeeded = status.and_then(|status| find(&status.conditions, "Succeeded"));
    succeeded.is_some_and(|condition| {
        condition.status == "True"
            || (condition.status == "False"
                && ["ShardsFailed", "PlanFailed", "FinishFailed"]
                    .contains(&condition.reason.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(suspend: bool) -> BatchJob {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job", "namespace": "default"},
            "spec": {
                "serviceRef": {"name": "service"}, "suspend": suspend,
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap()
    }

    fn service() -> millrace_crds::InferenceService {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "default"},
            "spec": {"models": [{"name": "m", "task": "Embedding", "source": {"uri": "s3://bucket/m"}}]},
        }))
        .unwrap()
    }

    fn seen(plan: Step, finish: Step, leases: Option<Snapshot>) -> Seen {
        Seen {
            service: Some(service()),
            plan,
            finish,
            leases,
        }
    }

    fn decided(job: &BatchJob, seen: &Seen) -> Decision {
        decide(job, &super::super::check::check(job, seen), seen)
    }

    fn planned() -> Step {
        Step::Ended(Report::Planned {
            shards: 2,
            committed: 0,
        })
    }

    fn counters(open: u64, done: u64) -> Option<Snapshot> {
        Some(Snapshot {
            known: true,
            open,
            done,
            ..Snapshot::default()
        })
    }

    #[test]
    fn a_job_goes_from_plan_to_work_to_finish() {
        let check = |seen: Seen, workers, make: Option<&str>, unmake: Option<&str>| {
            let decision = decided(&job(false), &seen);
            assert_eq!(decision.workers, workers, "{seen:?}");
            assert_eq!(decision.make.map(|made| made.step), make, "{seen:?}");
            assert_eq!(decision.unmake, unmake, "{seen:?}");
        };
        use Step::Absent;
        use Workers::{Rest, Work};
        check(
            seen(Absent, Absent, counters(0, 0)),
            Rest,
            Some("plan"),
            None,
        );
        check(seen(Step::Running(None), Absent, None), Rest, None, None);
        check(seen(planned(), Absent, counters(2, 0)), Work, None, None);
        check(
            seen(planned(), Absent, counters(0, 2)),
            Rest,
            Some("finish"),
            None,
        );
        let incomplete = Step::Ended(Report::Incomplete { shards: 1 });
        check(
            seen(planned(), incomplete, counters(1, 1)),
            Work,
            None,
            Some("finish"),
        );
    }

    #[test]
    fn a_lease_store_that_lost_the_run_is_filled_by_planning_again() {
        let decision = decided(
            &job(false),
            &seen(planned(), Step::Absent, Some(Snapshot::default())),
        );
        assert_eq!(decision.unmake, Some("plan"));
        let away = decided(&job(false), &seen(planned(), Step::Absent, None));
        assert_eq!(away.phase, Phase::LeasesAway);
        assert_eq!(away.workers, Workers::Work);
    }

    #[test]
    fn a_suspended_job_makes_nothing_and_its_workers_rest() {
        let decision = decided(&job(true), &seen(planned(), Step::Absent, counters(2, 0)));
        assert_eq!(decision.phase, Phase::Suspended);
        assert_eq!(decision.workers, Workers::Rest);
    }

    #[test]
    fn a_job_without_its_service_waits_for_it() {
        let mut seen = seen(Step::Absent, Step::Absent, None);
        seen.service = None;
        let decision = decided(&job(false), &seen);
        assert!(
            matches!(decision.phase, Phase::Refused(refused) if refused.reason == "ServiceNotFound")
        );
        assert!(decision.make.is_none());
    }
}
