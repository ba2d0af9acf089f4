//! What to do about a job, from what was seen of it. Pure.

use std::time::Duration;

use millrace_crds::BatchJob;
use millrace_leases::Snapshot;
use millrace_protocol::plan::RunNumber;
use millrace_protocol::report::{ErrorSample, Report};
use millrace_protocol::routes::RouteTally;
use millrace_protocol::tally::Tally;

use super::check::{Checked, Refused};
use super::observe::{Seen, Step};
use super::standing::{GiveUp, give_up, until_deletion};

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
    /// It has been over for as long as its object should stay.
    Expired,
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
    /// The manifest is being written over what is done; with what that waits for.
    GivingUp(GiveUp, Option<String>),
    /// The job was given up. Without a plan there is no manifest.
    GivenUp(GiveUp, Option<Finished>),
    /// A step failed for good.
    Failed {
        /// `PlanFailed` or `FinishFailed`.
        reason: &'static str,
        /// Why.
        message: String,
    },
}

impl Phase {
    /// Whether the run ends with it.
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            Phase::Finished(_) | Phase::GivenUp(..) | Phase::Failed { .. }
        )
    }
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
    /// Their indexes, in short.
    pub failed_indexes: Option<String>,
    /// Sums over the commits.
    pub tally: Tally,
    /// What became of the rows of each route and arm.
    pub routes: Vec<RouteTally>,
    /// The first few row errors.
    pub sample_errors: Vec<ErrorSample>,
    /// What went wrong beside the job.
    pub warning: Option<String>,
}

impl Finished {
    /// What a report says, if it is finish's and all is done or given up.
    fn of(report: &Report) -> Option<Self> {
        let Report::Finished {
            complete,
            shards,
            failed_shards,
            failed_indexes,
            tally,
            routes,
            sample_errors,
            warning,
        } = report
        else {
            return None;
        };
        Some(Finished {
            complete: *complete,
            shards: *shards,
            failed_shards: *failed_shards,
            failed_indexes: failed_indexes.clone(),
            tally: *tally,
            routes: routes.clone(),
            sample_errors: sample_errors.clone(),
            warning: warning.clone(),
        })
    }
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
    /// Of which run.
    pub run: RunNumber,
    /// Why finish gives up what is not done, if it does.
    pub give_up: Option<GiveUp>,
    /// The job's service.
    pub checked: Checked,
}

/// Decides.
pub fn decide(job: &BatchJob, checked: &Result<Checked, Refused>, seen: &Seen) -> Decision {
    if seen.standing.is_over {
        return match until_deletion(job, &seen.now) {
            None => rest(Phase::Over, None),
            Some(Duration::ZERO) => rest(Phase::Expired, None),
            later => rest(Phase::Over, later),
        };
    }
    let account = seen.account;
    if let Some(reason) = give_up(job, seen.standing, seen.leases.as_ref(), account, &seen.now) {
        return giving_up(job, reason, checked, seen);
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
            run: seen.standing.run,
            give_up: None,
            checked: checked.clone(),
        })
    };
    if seen.standing.is_resumed {
        // Its leases are forgotten, so that it is planned once more when the last end is out of the way.
        return Decision {
            unmake: Some("finish"),
            ..rest(Phase::Planning(None), Some(AT_WORK))
        };
    }
    match &seen.plan {
        Step::Absent => Decision {
            make: make("plan"),
            ..rest(Phase::Planning(None), None)
        },
        // Its pods' reasons to wait change without an event of the Job.
        Step::Running(waits) => rest(Phase::Planning(waits.clone()), Some(AT_WORK)),
        Step::Failed(message) => rest(failed("PlanFailed", message), None),
        Step::Ended(_) | Step::Unasked => at_work(seen, make),
    }
}

/// Lets the workers rest.
fn rest(phase: Phase, again_in: Option<Duration>) -> Decision {
    Decision {
        phase,
        workers: Workers::Rest,
        make: None,
        unmake: None,
        again_in,
    }
}

fn failed(reason: &'static str, message: &str) -> Phase {
    Phase::Failed {
        reason,
        message: message.to_owned(),
    }
}

/// What to say of a job whose step the API server will not have. Another visit tries again.
pub fn rejected(why: &str) -> Decision {
    rest(Phase::Refused(Refused::rejected(why)), Some(WAITING))
}

/// Decides about a job that is planned.
fn at_work(seen: &Seen, make: impl Fn(&'static str) -> Option<MadeStep>) -> Decision {
    let work = |phase| Decision {
        workers: Workers::Work,
        ..rest(phase, Some(AT_WORK))
    };
    match &seen.finish {
        Step::Ended(report) => match Finished::of(report) {
            Some(finished) => return rest(Phase::Finished(finished), None),
            // Commits were missing and their shards are queued again.
            None => {
                return Decision {
                    unmake: Some("finish"),
                    ..work(Phase::Running)
                };
            }
        },
        Step::Failed(message) => return rest(failed("FinishFailed", message), None),
        Step::Running(waits) => return rest(Phase::Finishing(waits.clone()), Some(AT_WORK)),
        Step::Absent | Step::Unasked => {}
    }
    match seen.leases {
        None => work(Phase::LeasesAway),
        // The lease store lost the run: planning again reads the commits and queues what is open.
        Some(Snapshot { known: false, .. }) => Decision {
            unmake: Some("plan"),
            ..work(Phase::Planning(None))
        },
        Some(Snapshot {
            open: 0, leased: 0, ..
        }) => Decision {
            make: make("finish"),
            ..rest(Phase::Finishing(None), Some(AT_WORK))
        },
        Some(_) => work(Phase::Running),
    }
}

/// Decides about a job that is to be given up: what is done gets its manifest, which names the rest.
fn giving_up(
    job: &BatchJob,
    reason: GiveUp,
    checked: &Result<Checked, Refused>,
    seen: &Seen,
) -> Decision {
    let was_planned = matches!(seen.plan, Step::Ended(Report::Planned { .. }))
        || (!seen.standing.is_new
            && job
                .status
                .as_ref()
                .is_some_and(|status| status.shards.is_some()));
    let (true, Ok(checked)) = (was_planned, checked) else {
        let unmake = (seen.plan != Step::Absent).then_some("plan");
        return Decision {
            unmake,
            ..rest(Phase::GivenUp(reason, None), None)
        };
    };
    let going = |waits| rest(Phase::GivingUp(reason, waits), Some(AT_WORK));
    match &seen.finish {
        Step::Absent | Step::Unasked => Decision {
            make: Some(MadeStep {
                step: "finish",
                run: seen.standing.run,
                give_up: Some(reason),
                checked: checked.clone(),
            }),
            ..going(None)
        },
        Step::Running(waits) => going(waits.clone()),
        Step::Failed(message) => rest(failed("FinishFailed", message), None),
        Step::Ended(report) => match Finished::of(report) {
            // The last shard was faster.
            Some(finished) if finished.complete => rest(Phase::Finished(finished), None),
            Some(finished) => rest(Phase::GivenUp(reason, Some(finished)), None),
            None => Decision {
                unmake: Some("finish"),
                ..going(None)
            },
        },
    }
}
