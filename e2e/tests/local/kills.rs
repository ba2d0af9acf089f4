//! kill -9 at random times, then resume: each time exactly one visible result per row, and the same
//! results as an undisturbed run.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use millrace_protocol::row::Place;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::scene::{Scene, SceneOptions, flush, jsonl, line_offsets};
use millrace_e2e::history::{Outcome, Outcomes, assert_every_row_once, outcomes, outcomes_so_far};
use millrace_e2e::process::{Process, children, send};
use millrace_e2e::redis_server::RedisServer;

/// Long enough for kills to land in every phase, short enough to be run each time.
const ROWS: usize = 3_000;
/// Every so many rows one is bad, so that error files are written too.
const BAD_EVERY: usize = 97;

fn scene() -> Scene {
    Scene::new(options())
}

fn options() -> SceneOptions {
    SceneOptions {
        input: jsonl(ROWS, BAD_EVERY),
        settings: "  sharding:\n    targetBytes: 16384\n  backoffLimitPerIndex: 100\n".to_owned(),
        fake_backend: "micros-per-token=60".to_owned(),
        ..SceneOptions::default()
    }
}

/// A random source whose seed is printed, so that a failure can be replayed.
fn dice(name: &str) -> StdRng {
    let seed = match std::env::var("MILLRACE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("MILLRACE_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    eprintln!("{name}: MILLRACE_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn pause(dice: &mut StdRng, millis: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(dice.random_range(millis)));
}

/// Every row once, and every result as an undisturbed run gives it.
fn check(scene: &Scene) {
    let seen = outcomes(&scene.output());
    let offsets = line_offsets(&jsonl(ROWS, BAD_EVERY));
    assert_every_row_once(&seen, &scene.uri("rows.jsonl"), &offsets);
    assert_calm(&seen);
}

/// What is visible between a kill and the run's end: no row twice, and each as an undisturbed run
/// gives it.
fn check_so_far(scene: &Scene) {
    assert_calm(&outcomes_so_far(&scene.output()));
}

fn assert_calm(seen: &Outcomes) {
    let calm = calm_outcomes();
    for ((_, place), outcome) in seen {
        assert_eq!(Some(outcome), calm.get(place), "at {place:?}");
    }
}

/// What a run that nobody disturbs gives, computed once.
fn calm_outcomes() -> &'static BTreeMap<Place, Outcome> {
    static CALM: OnceLock<BTreeMap<Place, Outcome>> = OnceLock::new();
    CALM.get_or_init(|| {
        let scene = scene();
        scene.run().succeed();
        let seen = outcomes(&scene.output()).into_iter();
        seen.map(|((_, place), outcome)| (place, outcome)).collect()
    })
}

#[test]
fn a_killed_cli_goes_on_where_it_was() {
    let mut dice = dice("a_killed_cli_goes_on_where_it_was");
    for _round in 0..4 {
        let scene = scene();
        for _kill in 0..5 {
            let mut run = scene.run();
            pause(&mut dice, 20..900);
            run.kill();
            check_so_far(&scene);
        }
        scene.run().succeed();
        check(&scene);
    }
}

#[test]
fn a_killed_server_is_started_again_and_no_row_is_lost() {
    let mut dice = dice("a_killed_server_is_started_again_and_no_row_is_lost");
    for _round in 0..3 {
        let scene = scene();
        let mut run = scene.run();
        for _kill in 0..5 {
            pause(&mut dice, 20..700);
            for child in children(run.pid()) {
                send(child, libc::SIGKILL);
            }
            check_so_far(&scene);
        }
        run.succeed();
        check(&scene);
    }
}

#[test]
fn killed_workers_lose_no_shard() {
    let mut dice = dice("killed_workers_lose_no_shard");
    let redis = RedisServer::start();
    for _round in 0..3 {
        let scene = scene();
        // Every round is a run of its own in the shared Redis.
        flush(&redis);
        let _server = scene.server();
        scene.worker("plan", &redis.url(), "plan.log").succeed();
        let mut workers: Vec<Process> = (0..2)
            .map(|_| scene.worker("work", &redis.url(), "work.log"))
            .collect();
        for _kill in 0..5 {
            pause(&mut dice, 20..900);
            let victim = dice.random_range(0..workers.len());
            workers[victim].kill();
            check_so_far(&scene);
            workers[victim] = scene.worker("work", &redis.url(), "work.log");
        }
        for worker in &mut workers {
            worker.succeed();
        }
        scene.worker("finish", &redis.url(), "finish.log").succeed();
        check(&scene);
    }
}

#[test]
fn two_runs_of_one_job_race_and_each_row_is_visible_once() {
    let scene = scene();
    let mut runs = [scene.run(), scene.run()];
    for run in &mut runs {
        run.succeed();
    }
    check(&scene);
}

#[test]
fn a_worker_told_to_stop_gives_its_shards_back_at_once() {
    let redis = RedisServer::start();
    let scene = Scene::new(SceneOptions {
        // Work for longer than the signal may take, and leases that nobody sees the end of.
        fake_backend: "micros-per-token=150".to_owned(),
        lease_ttl_ms: 3_600_000,
        ..options()
    });
    let _server = scene.server();
    scene.worker("plan", &redis.url(), "plan.log").succeed();
    let mut first = scene.worker("work", &redis.url(), "first.log");
    scene.wait_for_commits(1);
    first.signal(libc::SIGTERM);
    first.succeed();
    assert!(first.log().contains("Stopped"), "{}", first.log());
    // Nothing is left leased, so the second worker waits for no lease.
    scene.worker("work", &redis.url(), "second.log").succeed();
    scene.worker("finish", &redis.url(), "finish.log").succeed();
    check(&scene);
}
