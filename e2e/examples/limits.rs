//! How much of an API's limits jobs use: each case is a job against the stand-in in compressed time,
//! beside the least time that its limits allow. Ends with an error if a limit was exceeded, a call was put
//! off, a job took more than a twentieth longer than it had to, or one whose calls may grow took as long as
//! its first calls would have to.

use millrace_e2e::redis_server::RedisServer;
use millrace_e2e::remote::{Scene, SceneOptions, comments, transcript};
use millrace_stand_in::Record;
use serde_json::json;

/// How much faster time passes. A call of twenty seconds takes one here, of which what this machine
/// needs for it is a small part.
const TIME_FACTOR: f64 = 20.0;

/// Chunks of the transcript: 1,767 calls of five.
const CHUNKS: usize = 8_834;
const CALLS: f64 = 1_767.0;

/// Most tokens in a minute.
const TOKENS_MAX: u64 = 1_000_000;

/// Most time that a job of calls of a fixed size may take of the least that its limits allow.
const TOOK_MAX: f64 = 1.05;

/// A hundredth of the chunks.
const CHANGED: usize = CHUNKS / 100;

/// Names of the logs of three workers.
const WORKERS: [&str; 3] = ["one.log", "two.log", "three.log"];

struct Case {
    name: &'static str,
    options: SceneOptions,
    /// How many workers share the limits; none is a local run.
    workers: usize,
    /// The least seconds that the limits allow, by the clock of the API.
    bound_seconds: f64,
    /// Most time that the job may take of that.
    took_max: f64,
    /// Most requests in a minute.
    requests_max: u64,
}

fn cases() -> [Case; 5] {
    let transcript = |remote| transcript(CHUNKS, remote, TIME_FACTOR);
    let wide = json!({"requestsPerMinute": 500, "tokensPerMinute": 1_000_000, "concurrency": 170});
    let minutes = CALLS / 500.0 * 60.0;
    [
        Case {
            name: "100 comments, 15 calls a minute, five rows each",
            options: comments(5, TIME_FACTOR),
            workers: 0,
            // Fifteen calls in the first minute, and the other five with its end.
            bound_seconds: 64.0,
            took_max: TOOK_MAX,
            requests_max: 15,
        },
        Case {
            name: "100 comments, 15 calls a minute, one row each",
            options: comments(1, TIME_FACTOR),
            workers: 0,
            // Six full minutes, and ten calls after them, five at a time.
            bound_seconds: 368.0,
            took_max: TOOK_MAX,
            requests_max: 15,
        },
        Case {
            name: "8,834 chunks, 500 calls a minute, 50 at a time, five rows each",
            options: transcript(json!({})),
            workers: 3,
            bound_seconds: CALLS / 50.0 * 20.0,
            took_max: TOOK_MAX,
            requests_max: 500,
        },
        Case {
            name: "8,834 chunks, 500 calls a minute, 170 at a time, five rows each",
            options: transcript(json!({"limits": wide})),
            workers: 3,
            bound_seconds: minutes + 20.0,
            took_max: TOOK_MAX,
            requests_max: 500,
        },
        Case {
            name: "8,834 chunks, 500 calls a minute, 50 at a time, up to forty rows each",
            options: transcript(json!({"rowsPerCallMax": 40})),
            workers: 3,
            // What no job of five rows in a call can do, and one whose calls grow stays below.
            bound_seconds: minutes,
            took_max: 1.0,
            requests_max: 500,
        },
    ]
}

fn main() {
    println!("    by the API's clock, which runs {TIME_FACTOR} times as fast here");
    let mut kept = cases().map(|case| {
        let (name, bound, max) = (case.name, case.bound_seconds, case.requests_max);
        let took_max = case.took_max;
        let record = worked_off(case);
        let took = record.took_ms() as f64 / 1000.0;
        let (peak, refused) = (record.peak(), record.with_status(429).count());
        println!(
            "    {name}\n        {took:.1} s in {} calls, the bound is {bound:.1} s: {:.3}; at most {} calls \
             a minute, {} at a time; {refused} put off",
            record.calls.len(),
            took / bound,
            peak.requests,
            peak.in_flight,
        );
        let is_in_time = took / bound <= took_max;
        peak.requests <= max && peak.tokens <= TOKENS_MAX && refused == 0 && is_in_time
    }).to_vec();
    kept.push(asks_what_changed_alone());
    assert!(
        kept.iter().all(|kept| *kept),
        "a limit was not kept, or not used"
    );
}

/// A second run asks nothing, and one over an input of which a hundredth changed asks about that.
fn asks_what_changed_alone() -> bool {
    let scene = Scene::new(transcript(CHUNKS, json!({}), 10.0 * TIME_FACTOR));
    scene.run().succeed();
    let first = scene.record().calls.len();
    scene.run().succeed();
    let again = scene.record().calls.len() - first;
    let rows = std::fs::read_to_string(scene.path("rows.jsonl")).expect("the chunks");
    let changed = rows.lines().enumerate().map(|(row, line)| {
        let is_changed = row % 100 == 7 && row / 100 < CHANGED;
        let text = if is_changed {
            line.replace("of row", "once more of row")
        } else {
            line.to_owned()
        };
        text + "\n"
    });
    std::fs::write(scene.path("rows.jsonl"), changed.collect::<String>()).expect("the chunks");
    let manifests = std::fs::read_to_string(scene.path("job.yaml")).expect("the manifests");
    let next = r#""incremental":{"from":"out"},"output":{"uri":"next"}"#;
    let next = manifests.replace(r#""output":{"uri":"out"}"#, next);
    std::fs::write(scene.path("job.yaml"), next).expect("the manifests");
    scene.run().succeed();
    let calls = &scene.record().calls[first..];
    let asked: usize = calls.iter().map(|call| call.rows.len()).sum();
    println!(
        "    8,834 chunks again: {again} calls; with {CHANGED} changed: {} calls about {asked} chunks",
        calls.len()
    );
    let lines = scene.lines_of("next", "parts").len();
    again == 0 && asked == CHANGED && lines == CHUNKS
}

fn worked_off(case: Case) -> Record {
    let rows = case.options.rows;
    let scene = Scene::new(case.options);
    if case.workers == 0 {
        scene.run().succeed();
    } else {
        scene.work(&RedisServer::start(), &WORKERS[..case.workers]);
    }
    assert_eq!(scene.lines("parts").len(), rows, "a row is missing");
    scene.record()
}
