//! Limits are kept. How much of them is used is measured by a benchmark.

use millrace_e2e::redis_server::RedisServer;
use millrace_stand_in::{Algorithm, Call, Faults, Record, StandInOptions};
use serde_json::json;

use crate::scene::{Scene, SceneOptions, comments};
use crate::served::{Given, Served, wait};

/// How much faster time passes: a minute is six seconds, of which a busy machine has a fiftieth for what lies
/// between a call that is let in and its arrival.
const TIME_FACTOR: f64 = 10.0;

#[test]
fn no_minute_holds_more_requests_than_it_may() {
    let scene = Scene::new(comments(5, TIME_FACTOR));
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 100);
    let record = scene.record();
    assert_eq!(record.with_status(429).count(), 0);
    let peak = record.peak();
    // As many as the window allows in its first minute, five at a time as by default.
    assert_eq!(peak.requests, 15, "{peak:?}");
    assert!(peak.in_flight <= 5, "{peak:?}");
}

#[test]
fn tokens_are_what_is_short() {
    let scene = Scene::new(SceneOptions {
        rows: 80,
        remote: json!({"limits": {"tokensPerMinute": 1_000, "concurrency": 20}}),
        api: StandInOptions {
            tokens_per_minute: Some(1_000),
            latency_ms: 2_000,
            time_factor: TIME_FACTOR,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 80);
    let record = scene.record();
    assert!(record.peak().tokens <= 1_000, "{:?}", record.peak());
    assert_eq!(record.with_status(429).count(), 0);
}

#[test]
fn a_bucket_is_used_to_near_its_rate_and_never_overdrawn() {
    let limits = json!({
        "algorithm": "TokenBucket", "requestsPerMinute": 120, "requestsBurst": 20,
        "tokensPerMinute": 20_000, "concurrency": 50,
    });
    let scene = Scene::new(SceneOptions {
        rows: 200,
        remote: json!({"limits": limits}),
        api: StandInOptions {
            algorithm: Algorithm::TokenBucket,
            requests_per_minute: Some(120),
            requests_burst: Some(20),
            tokens_per_minute: Some(20_000),
            latency_ms: 2_000,
            time_factor: TIME_FACTOR,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 200);
    let record = scene.record();
    assert_eq!(record.with_status(429).count(), 0);
    let peak = record.peak();
    // That no minute holds more than the bucket, the API itself said: it refused nothing.
    assert!(peak.requests >= 120, "{peak:?}");
}

#[test]
fn an_api_that_allows_less_than_the_service_says_is_believed() {
    let scene = Scene::new(SceneOptions {
        rows: 40,
        // Nothing is said of requests, and twice as many calls at a time as the API takes in a minute.
        remote: json!({"limits": {"concurrency": 40}}),
        api: StandInOptions {
            requests_per_minute: Some(20),
            latency_ms: 1_000,
            time_factor: TIME_FACTOR,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 40);
    let record = scene.record();
    let refused = record.with_status(429).count();
    println!("{refused} calls were put off");
    // Those of the first burst: from the first answer on its limit is known, and none is beyond it.
    assert!(refused <= 20, "{refused}");
}

#[test]
fn what_one_worker_heard_of_the_limits_holds_for_the_next_worker_and_the_next_job() {
    let served = Served::new(Scene::new(SceneOptions {
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 10}}),
        api: StandInOptions {
            requests_per_minute: Some(5),
            // Its minute is longer than a worker takes to start.
            time_factor: 6.0,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    }));
    let scene = &served.scene;
    // The first leaves room for one call, so that the API says of none that it is the last.
    for (job, rows) in [("first", 0..4), ("second", 4..9)] {
        let count = rows.len();
        scene.write_rows(rows);
        let file = scene.path(&format!("{job}.jsonl"));
        std::fs::rename(scene.path("rows.jsonl"), &file).unwrap();
        served.give(Given {
            name: job,
            rows: file.display().to_string(),
            output: scene.path(job).display().to_string(),
            template: "{{ title }}: {{ text }}",
            credentials: None,
            priority: 0,
        });
        let mut worker = served.start(&format!("{job}.worker.log"));
        wait(&worker, "results", || {
            scene.lines_of(job, "parts").len() == count
        });
        worker.kill();
    }
    assert_eq!(scene.record().with_status(429).count(), 0);
}

/// How long the API asks to be left alone.
const PAUSE_MS: u64 = 8_000;

#[test]
fn an_overload_keeps_all_workers_away_for_as_long_as_the_api_says_and_halves_their_calls() {
    let scene = Scene::new(SceneOptions {
        rows: 110,
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 20}}),
        job: json!({"sharding": {"targetBytes": 2048}}),
        api: StandInOptions {
            latency_ms: 700,
            faults: Faults {
                // One of them, which is made again.
                overloaded_every: Some(60),
                overloaded_retry_after_ms: Some(PAUSE_MS),
                ..Faults::default()
            },
            ..StandInOptions::default()
        },
    });
    scene.work(&RedisServer::start(), &["one.log", "two.log"]);
    assert_eq!(scene.lines("parts").len(), 110);
    let calls = scene.record().calls;
    let overloaded = calls.iter().find(|call| call.status == Some(503));
    let told_ms = overloaded.and_then(|call| call.ended_ms).expect("it ends");
    let peak = |calls: Vec<Call>| Record { calls }.peak().in_flight;
    let (before, after): (Vec<Call>, Vec<Call>) =
        calls.into_iter().partition(|call| call.at_ms <= told_ms);
    // Calls that were let in before anybody was told are on their way for a moment yet.
    let (at_once, after): (Vec<Call>, Vec<Call>) = after
        .into_iter()
        .partition(|call| call.at_ms < told_ms + PAUSE_MS / 2);
    let first_ms = after.first().expect("others follow").at_ms;
    assert!(first_ms >= told_ms + PAUSE_MS, "{first_ms} {told_ms}");
    let most = peak(before);
    assert!(most > 15, "{most}");
    assert!(at_once.len() <= 20, "{}", at_once.len());
    // Half of twenty, and one or two more, since nineteen went well meanwhile and each of these does.
    let most = peak(after.into_iter().take(20).collect());
    assert!((5..=12).contains(&most), "{most}");
}
