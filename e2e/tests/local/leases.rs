//! Leases under faults: Redis flushed, stopped and stalled, and a worker stalled past its lease.

use std::time::Duration;

use crate::scene::{Scene, SceneOptions, flush, jsonl, line_offsets};
use millrace_e2e::history::{assert_every_row_once, commit_records, outcomes};
use millrace_e2e::redis_server::RedisServer;

const ROWS: usize = 2_000;

fn scene(micros_per_token: u32) -> Scene {
    Scene::new(SceneOptions {
        input: jsonl(ROWS, 0),
        settings: "  sharding:\n    targetBytes: 16384\n".to_owned(),
        fake_backend: format!("micros-per-token={micros_per_token}"),
        ..SceneOptions::default()
    })
}

fn check(scene: &Scene) {
    let offsets = line_offsets(&jsonl(ROWS, 0));
    assert_every_row_once(
        &outcomes(&scene.output()),
        &scene.uri("rows.jsonl"),
        &offsets,
    );
}

#[test]
fn a_flushed_redis_is_filled_again_from_plan_and_commits() {
    let redis = RedisServer::start();
    let scene = scene(100);
    let _server = scene.server();
    scene.worker("plan", &redis.url(), "plan.log").succeed();
    let mut worker = scene.worker("work", &redis.url(), "work.log");
    for commits in [1, 3] {
        scene.wait_for_commits(commits);
        flush(&redis);
    }
    worker.succeed();
    assert!(
        worker.log().contains("filling it from plan and commits"),
        "{}",
        worker.log()
    );
    scene.worker("finish", &redis.url(), "finish.log").succeed();
    check(&scene);
}

#[test]
fn a_stopped_redis_pauses_the_run_and_a_started_one_ends_the_pause() {
    let mut redis = RedisServer::start();
    // Work for longer than the server may take to stop.
    let scene = scene(250);
    let _server = scene.server();
    scene.worker("plan", &redis.url(), "plan.log").succeed();
    let mut workers = [
        scene.worker("work", &redis.url(), "a.log"),
        scene.worker("work", &redis.url(), "b.log"),
    ];
    scene.wait_for_commits(1);
    redis.stop();
    // Longer than a lease, so that every worker must let its shards go.
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(
        workers.iter_mut().all(|worker| worker.ended().is_none()),
        "a worker gave up"
    );
    redis.start_again();
    for worker in &mut workers {
        worker.succeed();
    }
    scene.worker("finish", &redis.url(), "finish.log").succeed();
    check(&scene);
}

#[test]
fn a_stalled_workers_renewal_is_refused_and_its_commit_loses() {
    let redis = RedisServer::start();
    let scene = scene(400);
    let _server = scene.server();
    scene.worker("plan", &redis.url(), "plan.log").succeed();
    let mut stalled = scene.worker("work", &redis.url(), "stalled.log");
    // A shard takes half a second, so soon after a commit the next one is in the middle.
    scene.wait_for_commits(2);
    std::thread::sleep(Duration::from_millis(150));
    stalled.signal(libc::SIGSTOP);
    // Twice its lease of two seconds.
    std::thread::sleep(Duration::from_secs(4));
    scene.worker("work", &redis.url(), "other.log").succeed();
    scene.worker("finish", &redis.url(), "finish.log").succeed();
    check(&scene);
    let before = commit_records(&scene.output());
    stalled.signal(libc::SIGCONT);
    stalled.succeed();
    let log = stalled.log();
    assert!(
        log.contains("the lease is lost") || log.contains("ours is discarded"),
        "{log}"
    );
    let after = commit_records(&scene.output());
    assert_eq!(after, before, "a commit that stood was changed");
    check(&scene);
}
