//! Workers, Redis and the API fail at random while a job runs. Afterwards each row has its one end, nothing was
//! paid for again but what was under way at a strike, and no minute held more calls than it may.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_e2e::process::{PATIENCE, Process, until};
use millrace_e2e::redis_server::RedisServer;
use millrace_stand_in::StandInOptions;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions};

const ROWS: usize = 1_500;
const ROWS_PER_CALL: usize = 3;
const CONCURRENCY: usize = 24;
const REQUESTS_PER_MINUTE: u64 = 240;
const STRIKES: usize = 10;

/// How much faster time passes: a minute is six seconds, which leaves a busy machine a tenth of one for
/// what lies between a call that is let in and its arrival.
const TIME_FACTOR: f64 = 10.0;

const LOGS: [&str; 3] = ["one.log", "two.log", "three.log"];

/// A random source whose seed is printed, so that a failure can be replayed.
fn seeded() -> StdRng {
    let seed = match std::env::var("MILLRACE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("MILLRACE_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    eprintln!("chaos: MILLRACE_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn scene() -> Scene {
    Scene::new(SceneOptions {
        rows: ROWS,
        remote: json!({
            "rowsPerCall": ROWS_PER_CALL,
            "timeout": "1s",
            "limits": {"requestsPerMinute": REQUESTS_PER_MINUTE, "concurrency": CONCURRENCY},
        }),
        job: json!({
            "sharding": {"targetBytes": 4096},
            "retry": {"maxAttempts": 8, "initialBackoff": "100ms", "maxBackoff": "1s"},
        }),
        // It enforces no limits, so that its record says whether they were kept.
        api: StandInOptions {
            latency_ms: 5_000,
            time_factor: TIME_FACTOR,
            ..StandInOptions::default()
        },
    })
}

fn work(scene: &Scene, redis: &RedisServer, log: &str) -> Process {
    let mut command = scene.command("millrace-worker");
    command.arg("work").arg("-f").arg(scene.path("job.yaml"));
    command.args(["--redis", &redis.url(), "--lease-ttl-ms", "4000"]);
    command.arg("--remote");
    Process::start(command, scene.path(log))
}

#[test]
fn rows_end_once_and_limits_hold_while_workers_redis_and_the_api_fail_at_random() {
    let (mut random, mut scene) = (seeded(), scene());
    let mut redis = RedisServer::start();
    scene.step(&redis, "plan", "plan.log").succeed();
    let mut workers = LOGS.map(|log| work(&scene, &redis, log));
    let begun = until(PATIENCE, || {
        (scene.record().calls.len() >= 20).then_some(())
    });
    assert!(begun.is_some(), "{}", workers[0].log());
    let rest = |random: &mut StdRng| {
        std::thread::sleep(Duration::from_millis(random.random_range(100..800)));
    };
    // What is under way at such a strike may be answered without anybody hearing of it.
    let mut unheard = 0;
    for _ in 0..STRIKES {
        rest(&mut random);
        let strike = random.random_range(0..3);
        eprintln!(
            "chaos: strike {strike} after {} calls",
            scene.record().calls.len()
        );
        match strike {
            0 => {
                let struck = random.random_range(0..workers.len());
                workers[struck].kill();
                rest(&mut random);
                workers[struck] = work(&scene, &redis, LOGS[struck]);
                unheard += 1;
            }
            1 => {
                redis.kill();
                rest(&mut random);
                redis.start_again();
            }
            _ => {
                scene.stop_api();
                rest(&mut random);
                scene.start_api_again();
                unheard += 1;
            }
        }
    }
    workers.iter_mut().for_each(Process::succeed);
    scene.step(&redis, "finish", "finish.log").succeed();

    let lines = scene.lines("parts");
    let ids: BTreeSet<String> = lines.iter().map(|line| line["id"].to_string()).collect();
    assert_eq!((ids.len(), lines.len()), (ROWS, ROWS));
    assert_eq!(scene.lines("errors"), [] as [Value; 0]);
    let record = scene.record();
    let answered = record.answered().values().sum::<u64>() as usize;
    let (again, most) = (answered - ROWS, unheard * CONCURRENCY * ROWS_PER_CALL);
    eprintln!(
        "chaos: {again} rows were paid for again, {:?}",
        record.peak()
    );
    assert!(again <= most, "{again} of at most {most}");
    assert!(
        record.peak().requests <= REQUESTS_PER_MINUTE,
        "{:?}",
        record.peak()
    );
    scene.assert_nothing_is_told(&LOGS);
}
