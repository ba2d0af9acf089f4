//! What the conditions of a job say. Pure.

use kube::ResourceExt;
use millrace_crds::BatchJob;
use millrace_crds::batch_job::RAISED_BUDGET;
use millrace_protocol::event::COMPLETED;

use super::decide::{Finished, Phase};
use super::standing::GiveUp;
use crate::conditions::{Is, Said};

/// Whether a job succeeded, why, and what there is to say of it.
struct Outcome {
    succeeded: Is,
    reason: &'static str,
    message: String,
}

impl Outcome {
    fn new(succeeded: Is, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            succeeded,
            reason,
            message: message.into(),
        }
    }

    /// Nobody knows yet: this is going on.
    fn open(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Is::Unknown, reason, message)
    }
}

/// What the four conditions say of a job.
pub fn conditions(job: &BatchJob, phase: &Phase) -> Vec<Said> {
    let Outcome {
        succeeded,
        reason,
        message,
    } = outcome(job, phase);
    let is_stalled =
        succeeded == Is::False || matches!(phase, Phase::Refused(refused) if refused.is_permanent);
    let is_moving = match phase {
        Phase::Planning(_)
        | Phase::Running
        | Phase::LeasesAway
        | Phase::Finishing(_)
        | Phase::GivingUp(..) => true,
        Phase::Refused(refused) => !refused.is_permanent,
        Phase::Over
        | Phase::Expired
        | Phase::Suspended
        | Phase::Finished(_)
        | Phase::GivenUp(..)
        | Phase::Failed { .. } => false,
    };
    let flag = |yes| if yes { Is::True } else { Is::False };
    let said = |kind, is| Said {
        kind,
        is,
        reason,
        message: message.clone(),
    };
    vec![
        said("Succeeded", succeeded),
        said("Ready", flag(succeeded == Is::True)),
        said("Reconciling", flag(is_moving)),
        said("Stalled", flag(is_stalled)),
    ]
}

fn outcome(job: &BatchJob, phase: &Phase) -> Outcome {
    match phase {
        Phase::Over | Phase::Expired => {
            unreachable!("a job that is over is not reported again")
        }
        Phase::Refused(refused) => Outcome::open(refused.reason, &refused.message),
        Phase::Suspended => Outcome::open("Suspended", "spec.suspend is true; what is done stays"),
        Phase::Planning(reason) => {
            Outcome::open("Planning", waits("the run is being planned", reason))
        }
        Phase::Running => Outcome::open("Running", "shards are being worked off"),
        Phase::LeasesAway => Outcome::open(
            "LeasesUnavailable",
            "the Redis of the leases cannot be reached; work goes on once it is back",
        ),
        Phase::Finishing(reason) => {
            Outcome::open("Finishing", waits("the manifest is being written", reason))
        }
        Phase::Finished(finished) => of_finished(finished),
        Phase::GivingUp(give_up, reason) => {
            let (word, why) = going(*give_up);
            let what = format!("{why}the manifest is being written over what is done");
            Outcome::open(word, waits(&what, reason))
        }
        Phase::GivenUp(give_up, finished) => of_given_up(job, *give_up, finished.as_ref()),
        Phase::Failed { reason, message } => Outcome::new(Is::False, reason, message),
    }
}

fn of_finished(finished: &Finished) -> Outcome {
    if finished.complete {
        let message = "every row ended as a result or as a reported error";
        return Outcome::new(Is::True, COMPLETED, warned(message.to_owned(), finished));
    }
    let message = format!(
        "{} of {} shards were given up; manifest.json names them with their reasons",
        finished.failed_shards, finished.shards
    );
    Outcome::new(Is::False, "ShardsFailed", warned(message, finished))
}

/// The reason of a job that is being given up, and why it is.
fn going(give_up: GiveUp) -> (&'static str, &'static str) {
    match give_up {
        GiveUp::Cancelled => ("Cancelling", ""),
        GiveUp::DeadlineExceeded => ("Expiring", "spec.activeDeadlineSeconds are over: "),
        GiveUp::TooManyFailedRows => (
            "Stopping",
            "more rows failed than spec.maxFailedRows allows: ",
        ),
        GiveUp::TooManyFailedIndexes => (
            "Stopping",
            "more shards were given up than spec.maxFailedIndexes allows: ",
        ),
        GiveUp::BudgetSpent => ("Stopping", "spec.budget.maxCost is spent: "),
    }
}

fn of_given_up(job: &BatchJob, give_up: GiveUp, finished: Option<&Finished>) -> Outcome {
    let mut message = match finished {
        None => "the job was given up before its plan was made: nothing was written".to_owned(),
        Some(finished) => {
            let message = format!(
                "{} of {} shards were not done; manifest.json names them",
                finished.failed_shards, finished.shards
            );
            warned(message, finished)
        }
    };
    if give_up == GiveUp::BudgetSpent {
        message = format!("{message}; {}", how_to_raise(job));
    }
    Outcome::new(Is::False, give_up.reason(), message)
}

/// How a job goes on whose budget is spent.
fn how_to_raise(job: &BatchJob) -> String {
    let (name, namespace) = (job.name_any(), job.namespace().unwrap_or_default());
    format!(
        "raise spec.budget.maxCost above status.cost.total, and the job goes on by itself: kubectl patch \
         batchjob {name} -n {namespace} --type merge -p '{RAISED_BUDGET}'"
    )
}

/// What is going on, and what its pod waits for.
fn waits(what: &str, reason: &Option<String>) -> String {
    match reason {
        Some(reason) => format!("{what}; its pod waits: {reason}"),
        None => what.to_owned(),
    }
}

/// What is said of a finished job, and what went wrong beside it.
fn warned(message: String, finished: &Finished) -> String {
    match &finished.warning {
        Some(warning) => format!("{message}; {warning}"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check::Refused;
    use super::*;

    fn job() -> BatchJob {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "embed", "namespace": "tenant"},
            "spec": {
                "serviceRef": {"name": "minilm"},
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_job_whose_budget_is_spent_says_how_it_goes_on() {
        for finished in [
            None,
            Some(Finished {
                complete: false,
                shards: 40,
                failed_shards: 3,
                failed_indexes: Some("37-39".to_owned()),
                tally: Default::default(),
                routes: vec![],
                sample_errors: vec![],
                warning: None,
            }),
        ] {
            let said = conditions(&job(), &Phase::GivenUp(GiveUp::BudgetSpent, finished));
            let command = "kubectl patch batchjob embed -n tenant --type merge -p \
                 '{\"spec\":{\"budget\":{\"maxCost\":\"AMOUNT\"}}}'";
            let message = &said[0].message;
            assert!(message.ends_with(command), "{message}");
            assert!(message.contains("raise spec.budget.maxCost"), "{message}");
        }
    }

    #[test]
    fn a_refusal_is_stalled_unless_it_passes_by_itself() {
        let check = |refused: Refused, reconciling: Is, stalled: Is| {
            let said = conditions(&job(), &Phase::Refused(refused));
            let states: Vec<_> = said.iter().map(|said| said.is).collect();
            assert_eq!(states, [Is::Unknown, Is::False, reconciling, stalled]);
        };
        let missing = Refused::service_not_found(&job(), "minilm");
        check(missing, Is::True, Is::False);
        check(Refused::rejected("a quota"), Is::False, Is::True);
    }

    #[test]
    fn every_phase_sets_every_condition_with_a_reason() {
        let phases = [
            Phase::Suspended,
            Phase::Planning(Some("ImagePullBackOff".into())),
            Phase::Running,
            Phase::LeasesAway,
            Phase::Finishing(None),
            Phase::GivingUp(GiveUp::Cancelled, None),
            Phase::GivenUp(GiveUp::DeadlineExceeded, None),
            Phase::Failed {
                reason: "PlanFailed",
                message: "no such bucket".into(),
            },
        ];
        for phase in phases {
            let said = conditions(&job(), &phase);
            let kinds: Vec<_> = said.iter().map(|said| said.kind).collect();
            assert_eq!(kinds, ["Succeeded", "Ready", "Reconciling", "Stalled"]);
            assert!(
                said.iter()
                    .all(|said| !said.reason.is_empty() && !said.message.is_empty())
            );
        }
    }
}
