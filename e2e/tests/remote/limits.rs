//! Limits are kept, and used up. Times are those of the API, of which a factor of thirty passes here.

use millrace_stand_in::StandInOptions;
use serde_json::json;

use crate::scene::{Scene, SceneOptions};

/// How much faster time passes.
const TIME_FACTOR: f64 = 30.0;

/// The limit is used up: a machine that is busy with other tests may add something to it.
fn takes_about(took_ms: u64, bound_seconds: f64) {
    let took = took_ms as f64 / 1000.0;
    println!("took {took:.1} s of the API's time; the bound is {bound_seconds:.1} s");
    assert!(
        took <= bound_seconds * 1.3,
        "{took} s for {bound_seconds} s"
    );
}

/// A hundred comments by an API that takes 15 requests a minute and four seconds for each.
fn comments(rows_per_call: u32) -> Scene {
    let scene = Scene::new(SceneOptions {
        rows: 100,
        remote: json!({"rowsPerCall": rows_per_call, "limits": {"requestsPerMinute": 15}}),
        api: StandInOptions {
            requests_per_minute: Some(15),
            latency_ms: 4_000,
            time_factor: TIME_FACTOR,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 100);
    let record = scene.record();
    assert_eq!(record.with_status(429).count(), 0);
    let peak = record.peak();
    assert!(peak.requests <= 15 && peak.in_flight <= 5, "{peak:?}");
    scene
}

#[test]
fn a_hundred_rows_five_at_a_time_take_what_the_window_allows() {
    // Fifteen calls in the first minute and five after it.
    takes_about(comments(5).record().took_ms(), 64.0);
}

#[test]
fn a_hundred_rows_one_at_a_time_take_what_the_window_allows() {
    // Six full minutes, and ten calls after them.
    takes_about(comments(1).record().took_ms(), 368.0);
}

#[test]
fn tokens_are_what_is_short() {
    let scene = Scene::new(SceneOptions {
        rows: 120,
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
    assert_eq!(scene.lines("parts").len(), 120);
    let record = scene.record();
    assert!(record.peak().tokens <= 1_000, "{:?}", record.peak());
    assert_eq!(record.with_status(429).count(), 0);
}

#[test]
fn an_api_that_allows_less_than_the_service_says_is_believed() {
    let scene = Scene::new(SceneOptions {
        rows: 60,
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
    assert_eq!(scene.lines("parts").len(), 60);
    let record = scene.record();
    let refused = record.with_status(429).count();
    println!("{refused} calls were put off");
    // Those of the first burst, and hardly more: the wait that the API asks for is kept.
    assert!(refused <= 40, "{refused}");
    takes_about(record.took_ms(), 3.0 * 60.0);
}
