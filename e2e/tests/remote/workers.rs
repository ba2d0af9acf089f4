//! Several workers share one API, its limits kept in a real Redis. How much of the limits they use is
//! measured by a benchmark.

use millrace_e2e::redis_server::RedisServer;
use millrace_stand_in::{Algorithm, Record};
use serde_json::json;

use crate::scene::{Scene, SceneOptions, transcript};

/// How much faster time passes.
const TIME_FACTOR: f64 = 10.0;

/// The same where the minutes are full: one is six seconds, of which a busy machine has a fiftieth for what lies
/// between a call that is let in and its arrival.
const TIME_FACTOR_OF_FULL_MINUTES: f64 = 10.0;

/// Rows of the transcript job, whose every five make a call: more calls than a minute may hold.
const CHUNKS: usize = 3_000;

/// Works the transcript off by three workers.
fn worked_off(options: SceneOptions) -> Record {
    let scene = Scene::new(options);
    let workers = ["one.log", "two.log", "three.log"];
    scene.work(&RedisServer::start(), &workers);
    assert_eq!(scene.lines("parts").len(), CHUNKS);
    scene.assert_nothing_is_told(&workers);
    let record = scene.record();
    assert_eq!(record.with_status(429).count(), 0, "{:?}", record.peak());
    record
}

fn assert_no_minute_held_too_much(record: &Record) {
    let peak = record.peak();
    assert!(peak.requests <= 500 && peak.tokens <= 1_000_000, "{peak:?}");
}

#[test]
fn three_workers_have_fifty_calls_in_flight_together() {
    let record = worked_off(transcript(CHUNKS, json!({}), TIME_FACTOR));
    assert_no_minute_held_too_much(&record);
    let peak = record.peak();
    assert!((45..=50).contains(&peak.in_flight), "{peak:?}");
}

#[test]
fn three_workers_ask_five_hundred_times_a_minute_together() {
    let limits =
        json!({"requestsPerMinute": 500, "tokensPerMinute": 1_000_000, "concurrency": 170});
    let remote = json!({"limits": limits});
    let record = worked_off(transcript(CHUNKS, remote, TIME_FACTOR_OF_FULL_MINUTES));
    assert_no_minute_held_too_much(&record);
    let peak = record.peak();
    assert!((450..=500).contains(&peak.requests), "{peak:?}");
}

#[test]
fn three_workers_take_out_of_one_bucket_as_fast_as_it_is_refilled() {
    let limits = json!({
        "algorithm": "TokenBucket", "requestsPerMinute": 500, "requestsBurst": 50,
        "tokensPerMinute": 1_000_000, "concurrency": 200,
    });
    let remote = json!({"limits": limits});
    let mut options = transcript(CHUNKS, remote, TIME_FACTOR_OF_FULL_MINUTES);
    options.api.algorithm = Algorithm::TokenBucket;
    options.api.requests_burst = Some(50);
    let peak = worked_off(options).peak();
    // That no minute holds more than the bucket, the API itself said: it refused nothing.
    assert!(peak.requests >= 450, "{peak:?}");
}

#[test]
fn a_call_takes_more_rows_while_calls_are_what_is_short() {
    let remote = json!({"rowsPerCallMax": 40});
    let record = worked_off(transcript(CHUNKS, remote, TIME_FACTOR));
    assert_no_minute_held_too_much(&record);
    assert!(record.calls.len() < CHUNKS / 5, "{}", record.calls.len());
}
