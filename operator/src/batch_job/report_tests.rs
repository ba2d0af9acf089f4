//! What the status of a job says, case by case.

use k8s_openapi::jiff::Timestamp;
use millrace_leases::Snapshot;
use millrace_leases::limits::Account;
use millrace_protocol::forecast::Forecast;
use millrace_protocol::routes::RouteTally;
use serde_json::{Value, json};

use super::super::decide_tests;
use super::super::standing::{GiveUp, standing};
use super::*;

/// The time of a visit, by the seconds after the job began.
fn at(seconds: i64) -> Time {
    Time(Timestamp::from_second(1_000 + seconds).unwrap())
}

/// A job that began at second 0, with what its status says.
fn begun(status: Value) -> BatchJob {
    let mut job = json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
        "metadata": {"name": "job", "namespace": "tenant", "generation": 1},
        "spec": {
            "serviceRef": {"name": "service"},
            "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
        },
        "status": {"run": 1, "startTime": at(0)},
    });
    for (name, value) in status.as_object().unwrap() {
        job["status"][name] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

/// What is seen at second 100 of a job whose service has prices and three pods.
fn seen(job: &BatchJob) -> Seen {
    let service = serde_json::from_value(json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": "service", "namespace": "tenant"},
        "spec": {"remote": {
            "baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m",
            "pricing": {
                "inputPerMillionTokens": "1", "outputPerMillionTokens": "2", "currency": "EUR",
            },
        }},
        "status": {"readyReplicas": 3},
    }));
    Seen {
        standing: standing(job),
        now: at(100),
        service: Some(std::sync::Arc::new(service.unwrap())),
        ..decide_tests::seen(Step::Unasked, Step::Unasked, None)
    }
}

fn tally(succeeded: u64, failed: u64, cost: &str) -> Tally {
    Tally {
        rows: Rows {
            succeeded,
            failed,
            skipped: 0,
        },
        tokens: 4_000,
        cost: cost.parse().unwrap(),
    }
}

/// Checks that a status says this; it may say more.
fn assert_says(status: &BatchJobStatus, expected: &Value) {
    let whole = json!(status);
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(whole[name], *value, "{name}");
    }
}

/// Four of ten shards of a job are done, and it gets on.
fn at_work(job: &BatchJob) -> Seen {
    let leases = Snapshot {
        known: true,
        open: 5,
        leased: 1,
        done: 4,
        tally: tally(390, 10, "1.5"),
        ..Snapshot::default()
    };
    let account = Account {
        paid: "1.75".parse().unwrap(),
        open: 1,
    };
    let pace = Pace {
        rows: 12.34,
        shards: 0.5,
    };
    Seen {
        leases: Some(leases),
        account: Some(account),
        pace: Some(pace),
        ..seen(job)
    }
}

#[test]
fn a_job_at_work_says_how_fast_it_is_when_it_ends_and_what_it_has_paid() {
    let job = begun(json!({"shards": {"total": 10, "committed": 1, "failed": 0}}));
    let status = status(&job, &at_work(&job), &Phase::Running);
    let expected = json!({
        "progress": "40%", "rowsPerSecond": 12.3, "eta": at(112), "workers": 3,
        "rows": {"succeeded": 390, "failed": 10, "skipped": 0}, "tokens": 4_000,
        // Calls are paid for whose shards have no commit yet.
        "cost": {"total": "1.75", "perRow": "0.004375", "currency": "EUR"},
    });
    assert_says(&status, &expected);
}

#[test]
fn while_no_shard_ends_the_end_that_is_foreseen_stays() {
    let mut job = begun(json!({"shards": {"total": 10, "committed": 1, "failed": 0}}));
    let first = status(&job, &at_work(&job), &Phase::Running);
    job.status = Some(first.clone());
    let later = Seen {
        now: at(105),
        ..at_work(&job)
    };
    assert_eq!(status(&job, &later, &Phase::Running), first);
    let mut unpaced = at_work(&job);
    unpaced.pace = None;
    unpaced.leases.as_mut().unwrap().done = 5;
    let unpaced = status(&job, &unpaced, &Phase::Running);
    assert_eq!((unpaced.rows_per_second, unpaced.eta), (None, None));
}

#[test]
fn what_a_plan_foresees_is_estimated_once() {
    let planned = |tokens| {
        Step::Ended(Report::Planned {
            shards: 10,
            committed: 0,
            forecast: Some(Forecast {
                rows: 400,
                sampled_rows: 20,
                tokens,
                cost: Some(("1".parse().unwrap(), "2.5".parse().unwrap())),
                currency: Some("EUR".to_owned()),
                max_cost: None,
            }),
        })
    };
    let mut job = begun(json!({}));
    let mut seen = Seen {
        plan: planned((3_000, 5_000)),
        ..at_work(&job)
    };
    let first = status(&job, &seen, &Phase::Running);
    let expected = json!({
        "rows": 400, "tokensLeast": 3_000, "tokensMost": 5_000,
        "costLeast": "1", "costMost": "2.5", "currency": "EUR",
    });
    assert_eq!(json!(first.estimate), expected);
    job.status = Some(first.clone());
    seen.plan = planned((1, 2));
    let second = status(&job, &seen, &Phase::Running);
    assert_eq!(second.estimate, first.estimate);
}

#[test]
fn an_end_says_how_fast_the_job_was_what_its_routes_did_and_which_rows_failed() {
    let job = begun(json!({"eta": at(500), "rowsPerSecond": 12.3}));
    let sample = ErrorSample {
        position: "s3://bucket/in@10".to_owned(),
        code: "invalid_json".to_owned(),
        message: "no JSON".to_owned(),
    };
    let route = RouteTally {
        route: "short".to_owned(),
        succeeded: 290,
        failed: 10,
        tokens: 4_000,
        cost: "2".parse().unwrap(),
        ..RouteTally::default()
    };
    let finished = Finished {
        complete: true,
        shards: 10,
        failed_shards: 0,
        failed_indexes: None,
        tally: tally(290, 10, "2"),
        routes: vec![route],
        sample_errors: vec![sample],
        warning: None,
    };
    let status = status(&job, &seen(&job), &Phase::Finished(finished));
    let expected = json!({
        "progress": "100%", "rowsPerSecond": 3.0, "completionTime": at(100), "eta": null,
        "workers": null,
        "cost": {"total": "2", "perRow": "0.006666666667", "currency": "EUR"},
        "routes": [{
            "route": "short", "succeeded": 290, "failed": 10, "escalated": 0, "tokens": 4_000,
            "cost": "2",
        }],
        "sampleErrors": [{
            "position": "s3://bucket/in@10", "code": "invalid_json", "message": "no JSON",
        }],
    });
    assert_says(&status, &expected);
}

#[test]
fn shards_of_a_job_that_was_given_up_are_no_progress() {
    let job = begun(json!({"shards": {"total": 26, "committed": 0, "failed": 0}}));
    let progress = |committed: u32| {
        let finished = Finished {
            complete: false,
            shards: 26,
            failed_shards: 26 - committed,
            failed_indexes: None,
            tally: Tally::default(),
            routes: vec![],
            sample_errors: vec![],
            warning: None,
        };
        let phase = Phase::GivenUp(GiveUp::Cancelled, Some(finished));
        status(&job, &seen(&job), &phase).progress
    };
    assert_eq!(progress(0).as_deref(), Some("0%"));
    assert_eq!(progress(13).as_deref(), Some("50%"));
}

#[test]
fn a_change_of_a_job_that_is_over_is_seen() {
    let job = serde_json::from_value(serde_json::json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
        "metadata": {"name": "job"},
        "spec": {
            "serviceRef": {"name": "service"},
            "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
        },
    }));
    let said = said::conditions(&job.unwrap(), &Phase::Suspended);
    let time = Time(k8s_openapi::jiff::Timestamp::from_second(1).unwrap());
    let before = BatchJobStatus {
        observed_generation: Some(1),
        conditions: written(said, &[], 1, time),
        ..BatchJobStatus::default()
    };
    let after = of_generation(&before, Some(2));
    assert_eq!(after.observed_generation, Some(2));
    let of_conditions: Vec<_> = after
        .conditions
        .iter()
        .map(|it| it.observed_generation)
        .collect();
    assert_eq!(of_conditions, [Some(2); 4]);
    assert_eq!(
        of_generation(&after, Some(2)),
        after,
        "and nothing is written twice"
    );
}
