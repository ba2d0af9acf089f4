//! What was answered once is not paid for again, by whatever job.

use millrace_e2e::process::Process;
use millrace_e2e::redis_server::RedisServer;
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions};

/// Runs the job, with answers kept in a folder.
fn run(scene: &Scene) {
    let mut command = scene.command("millrace");
    command.arg("run").arg("-f").arg(scene.path("job.yaml"));
    command.arg("--cache-folder").arg(scene.path("kept"));
    Process::start(command, scene.path("run.log")).succeed();
}

/// Changes the manifests.
fn change(scene: &Scene, from: &str, to: &str) {
    let manifests = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    assert!(manifests.contains(from), "{manifests}");
    std::fs::write(scene.path("job.yaml"), manifests.replace(from, to)).unwrap();
}

/// The same job becomes another one, which writes to `next`.
fn next_job(scene: &Scene) {
    change(scene, r#"{"uri":"out"}"#, r#"{"uri":"next"}"#);
    change(scene, r#"{"name":"scene"}"#, r#"{"name":"next"}"#);
}

fn said(lines: &[Value]) -> Vec<&Value> {
    lines.iter().map(|line| &line["result"]["said"]).collect()
}

#[test]
fn a_second_job_with_the_same_prompts_pays_nothing() {
    let pricing = json!({"inputPerMillionTokens": "1", "outputPerMillionTokens": "2"});
    let scene = Scene::new(SceneOptions {
        rows: 40,
        remote: json!({"rowsPerCall": 4, "pricing": pricing}),
        ..SceneOptions::default()
    });
    run(&scene);
    assert_eq!(scene.record().calls.len(), 10);
    next_job(&scene);
    run(&scene);
    assert_eq!(scene.record().calls.len(), 10);
    let (first, second) = (scene.lines("parts"), scene.lines_of("next", "parts"));
    assert_eq!(second.len(), 40);
    assert_eq!(said(&first), said(&second));
    let manifest = std::fs::read(scene.path("next/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["totals"]["tokens"], 0, "{manifest}");
    assert_eq!(manifest["totals"]["cost"], Value::Null, "{manifest}");
    // Another question is not the same one.
    change(
        &scene,
        r#"{{ title }}: {{ text }}"#,
        r#"{{ title }}! {{ text }}"#,
    );
    change(&scene, r#"{"uri":"next"}"#, r#"{"uri":"third"}"#);
    run(&scene);
    assert_eq!(scene.record().calls.len(), 20);
}

#[test]
fn equal_prompts_make_one_call() {
    let scene = Scene::new(SceneOptions {
        remote: json!({"limits": {"concurrency": 8}}),
        api: millrace_stand_in::StandInOptions {
            latency_ms: 50,
            ..millrace_stand_in::StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    let line =
        |row: u32| json!({"id": format!("row-{row}"), "title": "a", "text": "b"}).to_string();
    let lines: Vec<String> = (0..60).map(line).collect();
    std::fs::write(scene.path("rows.jsonl"), lines.join("\n")).unwrap();
    run(&scene);
    assert_eq!(scene.record().calls.len(), 1);
    let lines = scene.lines("parts");
    assert_eq!(lines.len(), 60);
    assert!(
        lines
            .iter()
            .all(|line| line["result"]["said"] == "On: a: b")
    );
}

/// Works the job off as pods would, with answers kept in the Redis at `cache_url`.
fn work(scene: &Scene, leases: &RedisServer, cache_url: &str) {
    for step in ["plan", "work", "finish"] {
        let mut command = scene.command("millrace-worker");
        command.arg(step).arg("-f").arg(scene.path("job.yaml"));
        command.args(["--redis", &leases.url()]);
        if step == "work" {
            command.args(["--remote", "--cache-redis-url", cache_url]);
        }
        Process::start(command, scene.path("worker.log")).succeed();
    }
}

#[test]
fn workers_share_answers_and_do_without_a_redis_that_is_away() {
    let scene = Scene::new(SceneOptions {
        rows: 20,
        ..SceneOptions::default()
    });
    let keeps = r#""spec":{"cache":{"enabled":true},"remote""#;
    change(&scene, r#""spec":{"remote""#, keeps);
    let (leases, cache) = (RedisServer::start(), RedisServer::start());
    work(&scene, &leases, &cache.url());
    assert_eq!(scene.record().calls.len(), 20);
    next_job(&scene);
    work(&scene, &leases, &cache.url());
    assert_eq!(scene.record().calls.len(), 20);
    assert_eq!(scene.lines_of("next", "parts").len(), 20);
    change(&scene, r#"{"uri":"next"}"#, r#"{"uri":"third"}"#);
    change(&scene, r#"{"name":"next"}"#, r#"{"name":"third"}"#);
    work(&scene, &leases, "redis://127.0.0.1:1");
    assert_eq!(scene.record().calls.len(), 40);
    scene.assert_nothing_is_told(&["worker.log"]);
}
