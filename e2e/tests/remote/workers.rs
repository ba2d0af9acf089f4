//! Several workers share one API, its limits kept in a real Redis. How much of the limits they use is
//! measured by a benchmark.

use millrace_e2e::redis_server::RedisServer;
use millrace_stand_in::Record;
use serde_json::{Value, json};

use crate::scene::{Scene, transcript};

/// How much faster time passes.
const TIME_FACTOR: f64 = 20.0;

/// Rows of the transcript job, whose every five make a call: more calls than a minute may hold.
const CHUNKS: usize = 3_000;

/// Works the transcript off by three workers.
fn worked_off(remote: Value) -> Record {
    let scene = Scene::new(transcript(CHUNKS, remote, TIME_FACTOR));
    let workers = ["one.log", "two.log", "three.log"];
    scene.work(&RedisServer::start(), &workers);
    assert_eq!(scene.lines("parts").len(), CHUNKS);
    scene.assert_nothing_is_told(&workers);
    let record = scene.record();
    assert_eq!(record.with_status(429).count(), 0, "{:?}", record.peak());
    let peak = record.peak();
    assert!(peak.requests <= 500 && peak.tokens <= 1_000_000, "{peak:?}");
    record
}

#[test]
fn three_workers_have_fifty_calls_in_flight_together() {
    let peak = worked_off(json!({})).peak();
    assert!((45..=50).contains(&peak.in_flight), "{peak:?}");
}

#[test]
fn three_workers_ask_five_hundred_times_a_minute_together() {
    let limits =
        json!({"requestsPerMinute": 500, "tokensPerMinute": 1_000_000, "concurrency": 170});
    let peak = worked_off(json!({"limits": limits})).peak();
    assert!((450..=500).contains(&peak.requests), "{peak:?}");
}

#[test]
fn a_call_takes_more_rows_while_calls_are_what_is_short() {
    let record = worked_off(json!({"rowsPerCallMax": 40}));
    assert!(record.calls.len() < CHUNKS / 5, "{}", record.calls.len());
}
