//! Several workers share one API, its limits kept in a real Redis.

use millrace_e2e::process::Process;
use millrace_e2e::redis_server::RedisServer;
use millrace_stand_in::{Record, StandInOptions};
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions};

/// How much faster time passes.
const TIME_FACTOR: f64 = 20.0;

/// Rows of the transcript job, whose every five make a call.
const CHUNKS: usize = 8_834;

/// Starts a step of `millrace-worker`.
pub fn step(scene: &Scene, redis: &RedisServer, step: &str, log: &str) -> Process {
    let mut command = scene.command("millrace-worker");
    command.arg(step).arg("-f").arg(scene.path("job.yaml"));
    command.args(["--redis", &redis.url(), "--lease-ttl-ms", "10000"]);
    if step == "work" {
        command.arg("--remote");
    }
    Process::start(command, scene.path(log))
}

/// A transcript of 8,834 chunks by an API that takes twenty seconds for a call, 500 requests and a
/// million tokens a minute, and three workers.
fn transcript(remote: Value) -> Record {
    let mut service = json!({
        "rowsPerCall": 5,
        "timeout": "30s",
        "limits": {"requestsPerMinute": 500, "tokensPerMinute": 1_000_000, "concurrency": 50},
    });
    for (name, value) in remote.as_object().unwrap() {
        service[name] = value.clone();
    }
    let scene = Scene::new(SceneOptions {
        rows: CHUNKS,
        remote: service,
        // Four hundred rows or so: eighty calls, of which a worker has two times as many to choose from.
        job: json!({"sharding": {"targetBytes": 30_000}}),
        api: StandInOptions {
            requests_per_minute: Some(500),
            tokens_per_minute: Some(1_000_000),
            latency_ms: 20_000,
            time_factor: TIME_FACTOR,
            ..StandInOptions::default()
        },
    });
    let redis = RedisServer::start();
    step(&scene, &redis, "plan", "plan.log").succeed();
    let workers = ["one.log", "two.log", "three.log"];
    let mut running: Vec<Process> = workers
        .iter()
        .map(|log| step(&scene, &redis, "work", log))
        .collect();
    running.iter_mut().for_each(Process::succeed);
    step(&scene, &redis, "finish", "finish.log").succeed();
    assert_eq!(scene.lines("parts").len(), CHUNKS);
    scene.assert_nothing_is_told(&workers);
    let record = scene.record();
    assert_eq!(record.with_status(429).count(), 0, "{:?}", record.peak());
    let peak = record.peak();
    assert!(peak.requests <= 500 && peak.tokens <= 1_000_000, "{peak:?}");
    let (calls, took) = (record.calls.len(), record.took_ms() as f64 / 1000.0);
    println!("{calls} calls took {took:.1} s of the API's time; at the fullest {peak:?}");
    record
}

/// The limit is used up: a machine that is busy with other tests may add something to it.
fn takes_about(record: &Record, bound_seconds: f64) {
    let took = record.took_ms() as f64 / 1000.0;
    println!("the bound is {bound_seconds:.1} s");
    assert!(
        took <= bound_seconds * 1.3,
        "{took} s for {bound_seconds} s"
    );
}

#[test]
fn fifty_calls_at_a_time_take_what_their_number_allows() {
    let record = transcript(json!({}));
    assert!(record.peak().in_flight <= 50);
    // 1,767 calls of twenty seconds, fifty at a time.
    takes_about(&record, 1_767.0 / 50.0 * 20.0);
}

#[test]
fn a_hundred_and_seventy_calls_at_a_time_take_what_the_limit_allows() {
    let limits =
        json!({"requestsPerMinute": 500, "tokensPerMinute": 1_000_000, "concurrency": 170});
    let record = transcript(json!({"limits": limits}));
    // 1,767 calls, 500 in a minute, and one call.
    takes_about(&record, 1_767.0 / 500.0 * 60.0 + 20.0);
}

#[test]
fn more_rows_in_a_call_take_less_than_any_number_of_calls() {
    let record = transcript(json!({"rowsPerCallMax": 40}));
    takes_about(&record, 1_767.0 / 500.0 * 60.0);
}
