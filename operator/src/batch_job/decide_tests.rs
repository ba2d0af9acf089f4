//! What is decided about a job, case by case.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use millrace_crds::BatchJob;
use millrace_leases::Snapshot;
use millrace_leases::limits::Account;
use millrace_protocol::cost::Cost;
use millrace_protocol::report::Report;
use millrace_protocol::tally::{Rows, Tally};
use serde_json::json;

use super::decide::*;
use super::observe::{Seen, Step};
use super::standing::{GiveUp, standing};

pub fn job(suspend: bool) -> BatchJob {
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

pub fn seen(plan: Step, finish: Step, leases: Option<Snapshot>) -> Seen {
    Seen {
        standing: standing(&job(false)),
        now: Time(Timestamp::from_second(1_000).unwrap()),
        service: Some(service().into()),
        others: vec![],
        plan,
        finish,
        leases,
        failed_indexes: None,
        account: None,
        pace: None,
    }
}

fn decided(job: &BatchJob, seen: &Seen) -> Decision {
    decide(job, &super::check::check(job, seen), seen)
}

fn planned() -> Step {
    Step::Ended(Report::Planned {
        shards: 2,
        committed: 0,
        forecast: None,
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

#[test]
fn a_job_that_does_not_fit_its_service_is_refused_with_the_field_and_what_to_do() {
    let check = |patch: serde_json::Value, reason: &str, message: &str| {
        let job = begun(patch);
        let decision = decided(&job, &seen(Step::Absent, Step::Absent, counters(0, 0)));
        let Phase::Refused(refused) = decision.phase else {
            panic!("{:?}", decision.phase);
        };
        assert_eq!(
            (refused.reason, refused.message.as_str()),
            (reason, message)
        );
        assert!(decision.make.is_none(), "{reason}");
    };
    check(
        json!({"credentials": {"name": "bucket"}}),
        "SecretNotShared",
        "spec.credentials: list \"bucket\" in spec.secrets of InferenceService \"service\", whose \
         workers read and write for this job",
    );
    check(
        json!({"steps": [{"name": "a", "model": "m"}, {"name": "b", "model": "other"}]}),
        "UnknownModel",
        "spec.steps[1].model: the service has no model \"other\"; it has m",
    );
}

/// A job that began at 900 s, with these changes to its spec.
fn begun(patch: serde_json::Value) -> BatchJob {
    let mut job = serde_json::to_value(job(false)).unwrap();
    for (key, value) in patch.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job["status"] = json!({
        "run": 1, "startTime": Time(Timestamp::from_second(900).unwrap()),
        "shards": {"total": 2, "committed": 1, "failed": 0},
    });
    serde_json::from_value(job).unwrap()
}

fn finished(complete: bool) -> Step {
    Step::Ended(Report::Finished {
        complete,
        shards: 2,
        failed_shards: u32::from(!complete),
        failed_indexes: (!complete).then(|| "1".to_owned()),
        tally: Tally::default(),
        routes: vec![],
        sample_errors: vec![],
        warning: None,
    })
}

#[test]
fn a_job_that_is_given_up_gets_a_manifest_over_what_is_done() {
    let cancelled = begun(json!({"cancel": true}));
    let decision = decided(&cancelled, &seen(planned(), Step::Absent, counters(1, 1)));
    let made = decision.make.unwrap();
    assert_eq!(
        (made.step, made.give_up),
        ("finish", Some(GiveUp::Cancelled))
    );
    assert_eq!(decision.workers, Workers::Rest);
    let decision = decided(&cancelled, &seen(planned(), finished(false), None));
    assert!(matches!(
        decision.phase,
        Phase::GivenUp(GiveUp::Cancelled, Some(_))
    ));
    let decision = decided(&cancelled, &seen(planned(), finished(true), None));
    assert!(matches!(decision.phase, Phase::Finished(_)));
}

#[test]
fn a_job_that_is_given_up_before_its_plan_just_ends() {
    let mut cancelled = begun(json!({"cancel": true}));
    cancelled.status = None;
    let decision = decided(&cancelled, &seen(Step::Running(None), Step::Absent, None));
    assert_eq!(decision.phase, Phase::GivenUp(GiveUp::Cancelled, None));
    assert_eq!(decision.unmake, Some("plan"));
}

#[test]
fn a_deadline_counts_from_the_jobs_beginning() {
    let phase = |seconds| {
        let job = begun(json!({"activeDeadlineSeconds": seconds}));
        decided(&job, &seen(planned(), Step::Absent, counters(1, 1))).phase
    };
    assert_eq!(phase(101), Phase::Running);
    assert_eq!(phase(100), Phase::GivingUp(GiveUp::DeadlineExceeded, None));
}

#[test]
fn more_shards_that_are_given_up_than_may_be_end_the_job() {
    let phase = |failed, leases: Option<Snapshot>| {
        let mut job = begun(json!({"maxFailedIndexes": 1}));
        let shards = json!({"total": 4, "committed": 1, "failed": failed});
        job.status.as_mut().unwrap().shards = serde_json::from_value(shards).unwrap();
        decided(&job, &seen(planned(), Step::Absent, leases)).phase
    };
    let leases = |dead| counters(1, 1).map(|leases| Snapshot { dead, ..leases });
    assert_eq!(phase(0, leases(1)), Phase::Running);
    let stopping = Phase::GivingUp(GiveUp::TooManyFailedIndexes, None);
    assert_eq!(phase(0, leases(2)), stopping);
    // Its end was cut off between forgetting the leases and being written.
    assert_eq!(phase(2, Some(Snapshot::default())), stopping);
    assert_eq!(phase(1, None), Phase::LeasesAway);
}

#[test]
fn more_failed_rows_than_may_be_end_the_job_by_count_or_by_percentage() {
    let rows = |succeeded, failed| Rows {
        succeeded,
        failed,
        skipped: 0,
    };
    let phase = |max: serde_json::Value, rows: Rows| {
        let tally = Tally {
            rows,
            ..Tally::default()
        };
        let leases = counters(1, 1).map(|leases| Snapshot { tally, ..leases });
        let job = begun(json!({"maxFailedRows": max}));
        decided(&job, &seen(planned(), Step::Absent, leases)).phase
    };
    let stopping = Phase::GivingUp(GiveUp::TooManyFailedRows, None);
    assert_eq!(phase(json!(3), rows(10, 3)), Phase::Running);
    assert_eq!(phase(json!(3), rows(10, 4)), stopping);
    assert_eq!(phase(json!("5%"), rows(190, 10)), Phase::Running);
    assert_eq!(phase(json!("5%"), rows(189, 11)), stopping);
}

#[test]
fn an_end_for_failed_rows_that_was_cut_off_ends_for_the_same_reason() {
    let mut job = begun(json!({"maxFailedRows": 3}));
    let counted = json!({"succeeded": 10, "failed": 4, "skipped": 0});
    job.status.as_mut().unwrap().rows = serde_json::from_value(counted).unwrap();
    // The leases are forgotten, and the end is not written yet.
    let phase = |finish| decided(&job, &seen(planned(), finish, Some(Snapshot::default()))).phase;
    let reason = GiveUp::TooManyFailedRows;
    assert_eq!(phase(Step::Absent), Phase::GivingUp(reason, None));
    let ended = phase(finished(false));
    assert!(
        matches!(ended, Phase::GivenUp(it, Some(_)) if it == reason),
        "{ended:?}"
    );
    let said = super::said::conditions(&job, &ended);
    let succeeded = said.iter().find(|it| it.kind == "Succeeded").unwrap();
    assert_eq!(succeeded.reason, "TooManyFailedRows");
}

#[test]
fn a_job_that_is_over_goes_after_its_time() {
    let phase = |seconds| {
        let mut job = begun(json!({"ttlSecondsAfterFinished": seconds}));
        let ended = Time(Timestamp::from_second(950).unwrap());
        let status = job.status.as_mut().unwrap();
        status.completion_time = Some(ended.clone());
        status.conditions = serde_json::from_value(json!([{
            "type": "Succeeded", "status": "True", "reason": "Completed", "message": "",
            "lastTransitionTime": ended,
        }]))
        .unwrap();
        let seen = Seen {
            standing: standing(&job),
            ..seen(Step::Unasked, Step::Unasked, None)
        };
        let Decision {
            phase, again_in, ..
        } = decided(&job, &seen);
        (phase, again_in)
    };
    assert_eq!(phase(60), (Phase::Over, Some(Duration::from_secs(10))));
    assert_eq!(phase(50), (Phase::Expired, None));
    assert!(!Phase::Over.is_end(), "or its trace would be written again");
}

/// A service with prices.
fn priced() -> millrace_crds::InferenceService {
    let mut service = serde_json::to_value(service()).unwrap();
    service["spec"] = json!({"remote": {
        "baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m",
        "pricing": {"inputPerMillionTokens": "1", "outputPerMillionTokens": "2"},
    }});
    serde_json::from_value(service).unwrap()
}

#[test]
fn a_budget_that_is_spent_ends_the_job_once_no_call_is_made_any_more() {
    let job = begun(json!({"budget": {"maxCost": "2"}}));
    let phase = |paid: &str, open| {
        let paid: Cost = paid.parse().unwrap();
        let seen = Seen {
            service: Some(priced().into()),
            account: Some(Account { paid, open }),
            ..seen(planned(), Step::Absent, counters(1, 1))
        };
        decided(&job, &seen).phase
    };
    assert_eq!(phase("1.99", 0), Phase::Running);
    assert_eq!(phase("2.1", 1), Phase::Running);
    assert_eq!(phase("2", 0), Phase::GivingUp(GiveUp::BudgetSpent, None));
    let seen = seen(planned(), Step::Absent, counters(1, 1));
    let refused = decided(&job, &seen).phase;
    assert!(matches!(refused, Phase::Refused(refused) if refused.reason == "NoPricing"));
}

#[test]
fn a_job_whose_budget_was_spent_goes_on_when_it_is_raised() {
    let decision = |max: &str, reason: &str| {
        let mut job = begun(json!({"budget": {"maxCost": max}}));
        let status = job.status.as_mut().unwrap();
        let spent = json!({"total": "2.1", "currency": "USD"});
        status.cost = serde_json::from_value(spent).unwrap();
        status.conditions = serde_json::from_value(json!([{
            "type": "Succeeded", "status": "False", "reason": reason, "message": "",
            "lastTransitionTime": Time(Timestamp::from_second(950).unwrap()),
        }]))
        .unwrap();
        let seen = Seen {
            standing: standing(&job),
            service: Some(priced().into()),
            ..seen(planned(), finished(false), Some(Snapshot::default()))
        };
        decided(&job, &seen)
    };
    assert_eq!(decision("2", "BudgetSpent").phase, Phase::Over);
    assert_eq!(decision("5", "ShardsFailed").phase, Phase::Over);
    let resumed = decision("5", "BudgetSpent");
    assert_eq!(resumed.phase, Phase::Planning(None));
    assert_eq!(resumed.unmake, Some("finish"));
}
