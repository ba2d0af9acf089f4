//! What calls cost is counted to the last token, and a budget is kept to.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use millrace_e2e::process::{PATIENCE, Process, until};
use millrace_e2e::redis_server::RedisServer;
use millrace_e2e::starting::on_free_port;
use millrace_protocol::cost::{Cost, Prices};
use millrace_stand_in::{Call, Faults, Record, StandInOptions};
use serde_json::{Value, json};

use crate::scene::{KEY, Scene, SceneOptions, WORD};
use crate::served::{Served, wait};

/// So cheap that a token costs a part of a millionth.
const INPUT: &str = "0.15";
const OUTPUT: &str = "0.6";
const CALL: &str = "0.0001";

fn pricing() -> Value {
    json!({
        "inputPerMillionTokens": INPUT, "outputPerMillionTokens": OUTPUT, "perCall": CALL,
        "currency": "EUR",
    })
}

fn cost(text: &str) -> Cost {
    text.parse().unwrap()
}

/// What the stand-in would send a bill over: every answer that it gave.
fn billed(record: &Record) -> Cost {
    let prices = Prices::new(cost(INPUT), cost(OUTPUT), cost(CALL));
    let price = |call: &Call| prices.of(1, call.tokens - call.answer_tokens, call.answer_tokens);
    record.with_status(200).map(price).sum()
}

/// The dearest call.
fn dearest(record: &Record) -> Cost {
    let only = |call: &Call| {
        let calls = vec![call.clone()];
        billed(&Record { calls })
    };
    record.calls.iter().map(only).max().unwrap()
}

fn scene(rows: usize, job: Value, faults: Faults) -> Scene {
    scene_of("Chat", rows, job, faults)
}

fn scene_of(api: &str, rows: usize, job: Value, faults: Faults) -> Scene {
    let mut spec = json!({
        "sharding": {"targetBytes": 2048},
        "retry": {"maxAttempts": 8, "initialBackoff": "10ms", "maxBackoff": "50ms"},
    });
    for (name, value) in job.as_object().unwrap() {
        spec[name] = value.clone();
    }
    Scene::new(SceneOptions {
        rows,
        remote: json!({
            "api": api, "rowsPerCall": 3, "limits": {"concurrency": 6}, "pricing": pricing(),
        }),
        job: spec,
        api: StandInOptions {
            latency_ms: 300,
            time_factor: 20.0,
            faults,
            ..StandInOptions::default()
        },
    })
}

/// The job as it is printed at the end, with its exit code.
fn run(scene: &Scene) -> (Value, Option<i32>) {
    let mut command = scene.command("millrace");
    command.arg("run").arg("-f").arg(scene.path("job.yaml"));
    let ended = command.args(["-o", "json"]).output().unwrap();
    let text = String::from_utf8(ended.stdout).unwrap();
    for told in [KEY, WORD] {
        assert!(!text.contains(told), "{told:?} is told: {text}");
    }
    let last = text.lines().last().unwrap_or_default();
    let job = serde_json::from_str(last);
    let said = String::from_utf8_lossy(&ended.stderr);
    let job = job.unwrap_or_else(|error| panic!("{error}: {text}\n{said}"));
    (job, ended.status.code())
}

fn total(job: &Value) -> Cost {
    cost(job["status"]["cost"]["total"].as_str().expect("a total"))
}

/// Gives the job another budget.
fn allow(scene: &Scene, max_cost: &str) {
    let path = scene.path("job.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (service, job) = text.split_once("\n---\n").unwrap();
    let mut job: Value = serde_json::from_str(job).unwrap();
    job["spec"]["budget"] = json!({"maxCost": max_cost});
    std::fs::write(&path, format!("{service}\n---\n{job}\n")).unwrap();
}

#[test]
fn the_cost_of_a_job_is_that_of_every_answer_it_got() {
    // Some answers are good for nothing, and are paid for all the same.
    let faults = Faults {
        malformed_every: Some(7),
        short_every: Some(5),
        failed_every: Some(11),
        ..Faults::default()
    };
    let scene = scene(150, json!({}), faults);
    let (job, code) = run(&scene);
    assert_eq!(code, Some(0), "{job}");
    let record = scene.record();
    assert!(record.with_status(500).count() > 0);
    assert_eq!(total(&job), billed(&record), "{job}");
    let spent = &job["status"]["cost"];
    let per_row = billed(&record).per(150).to_string();
    assert_eq!(
        (&spent["currency"], &spent["perRow"]),
        (&json!("EUR"), &json!(per_row))
    );
    let manifest = std::fs::read(scene.path("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(
        manifest["totals"]["cost"],
        json!(billed(&record)),
        "{manifest}"
    );
    let receipts = scene.path("out/_millrace/runs/0001/receipts");
    let left = std::fs::read_dir(receipts).into_iter().flatten();
    let left = left.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    assert_eq!(left.count(), 0, "receipts of committed shards are gone");
}

#[test]
fn a_worker_counts_what_its_calls_cost() {
    let served = Served::new(scene(60, json!({}), Faults::default()));
    let scene = &served.scene;
    served.give_rows("job");
    let started = on_free_port(|port| {
        let address = format!("127.0.0.1:{port}");
        let mut worker = served.start_at(&address, "worker.log");
        let listens = until(PATIENCE, || match worker.ended() {
            Some(_) => Some(false),
            None => TcpStream::connect(&address).is_ok().then_some(true),
        });
        (listens == Some(true)).then_some((worker, address))
    });
    let (worker, address) = started.expect("it listens");
    wait(&worker, "results", || scene.lines("parts").len() == 60);
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    let mut lines = metrics.lines();
    let counted = lines.find_map(|line| line.strip_prefix("millrace_worker_cost_total "));
    let counted: f64 = counted.expect("it is there").parse().unwrap();
    let billed = billed(&scene.record()).as_f64();
    assert!(billed > 0.0 && (counted - billed).abs() < 1e-9, "{metrics}");
}

#[test]
fn what_a_run_will_cost_is_said_before_the_first_call() {
    let mut scene = scene(30, json!({}), Faults::default());
    scene.stop_api();
    let mut run = scene.run();
    let said = until(PATIENCE, || {
        let log = run.log();
        let line = log
            .lines()
            .find(|line| line.contains("the whole job takes"))?;
        Some(line.to_owned())
    });
    let said = said.unwrap_or_else(|| panic!("{}", run.log()));
    assert!(scene.record().calls.is_empty());
    assert!(said.contains("EUR"), "{said}");
    scene.start_api_again();
    run.succeed();
    assert_eq!(scene.lines("parts").len(), 30);
}

#[test]
fn a_budget_stops_a_job_within_one_call_and_raised_it_pays_for_nothing_twice() {
    let budget = "0.006";
    let scene = scene(
        300,
        json!({"budget": {"maxCost": budget}}),
        Faults::default(),
    );
    let (job, code) = run(&scene);
    assert_eq!(code, Some(3), "{job}");
    let record = scene.record();
    let (paid, most) = (billed(&record), cost(budget) + dearest(&record));
    assert!(paid >= cost(budget) && paid < most, "{paid} of {budget}");
    assert_eq!(
        total(&job),
        paid,
        "what has no commit yet is counted as well"
    );
    let condition = &job["status"]["conditions"][0];
    assert_eq!(condition["reason"], "BudgetSpent", "{job}");
    let next = condition["message"].as_str().unwrap();
    assert!(next.contains("spec.budget.maxCost is spent"), "{next}");
    assert!(next.contains("raise it, and `millrace run -f "), "{next}");
    assert!(scene.lines("parts").len() < 300);

    // Nothing is asked as long as nothing more may be paid.
    let (again, code) = run(&scene);
    assert_eq!((code, total(&again)), (Some(3), paid), "{again}");
    assert_eq!(scene.record().calls.len(), record.calls.len());

    allow(&scene, "1");
    let (job, code) = run(&scene);
    assert_eq!(code, Some(0), "{job}");
    let record = scene.record();
    assert_eq!(scene.lines("parts").len(), 300);
    let rows = record.answered();
    assert!(rows.values().all(|times| *times == 1), "{rows:?}");
    assert_eq!(total(&job), billed(&record));
}

#[test]
fn a_budget_without_prices_is_refused_before_anything_is_asked() {
    let scene = Scene::new(SceneOptions {
        job: json!({"budget": {"maxCost": "1"}}),
        ..SceneOptions::default()
    });
    let mut run = scene.run();
    assert_eq!(run.wait().code(), Some(2));
    assert!(run.log().contains("spec.remote.pricing"), "{}", run.log());
    assert!(scene.record().calls.is_empty());
}

fn step(scene: &Scene, redis: &RedisServer, step: &str, log: &str) -> Process {
    let mut command = scene.command("millrace-worker");
    command.arg(step).arg("-f").arg(scene.path("job.yaml"));
    command.args(["--redis", &redis.url(), "--lease-ttl-ms", "3000"]);
    match step {
        "work" => command.arg("--remote"),
        "finish" => command.args(["--give-up", "the budget is spent"]),
        _ => &mut command,
    };
    Process::start(command, scene.path(log))
}

#[test]
fn workers_share_a_budget_though_one_is_killed_and_redis_forgets() {
    let budget = "0.012";
    let scene = scene(
        600,
        json!({"budget": {"maxCost": budget}}),
        Faults::default(),
    );
    let redis = RedisServer::start();
    step(&scene, &redis, "plan", "plan.log").succeed();
    let logs = ["one.log", "two.log", "three.log"];
    let mut workers: Vec<Process> = logs
        .iter()
        .map(|log| step(&scene, &redis, "work", log))
        .collect();
    let calls = |calls: usize| {
        let seen = until(PATIENCE, || {
            (scene.record().calls.len() >= calls).then_some(())
        });
        assert!(seen.is_some(), "{} calls", scene.record().calls.len());
    };
    calls(20);
    workers.remove(0).kill();
    calls(30);
    redis.command::<()>(&["FLUSHALL"]);
    workers.iter_mut().for_each(Process::succeed);
    let record = scene.record();
    // Nobody knows of what was under way at the worker that is gone, nor of what was when the server forgot
    // it: six calls each. What was answered is on receipts. One call more may have been begun.
    let (paid, mut most) = (billed(&record), cost(budget));
    for _ in 0..6 + 6 + 1 {
        most += dearest(&record);
    }
    assert!(paid >= cost(budget) && paid < most, "{paid} of {budget}");
    let ended = step(&scene, &redis, "finish", "finish.log").wait();
    assert_eq!(ended.code(), Some(3), "some shards were given up");
    let manifest = std::fs::read(scene.path("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["complete"], false);
    assert_eq!(manifest["currency"], "EUR");
    let mut told = cost(manifest["totals"]["cost"].as_str().unwrap());
    assert!(told <= paid, "{told} of {paid}");
    for _ in 0..6 {
        told += dearest(&record);
    }
    assert!(
        told >= paid,
        "only what the killed worker heard may be missing"
    );
    scene.assert_nothing_is_told(&logs);
}

/// Kills a run again and again, and returns it as it ends when nobody does.
fn killed_in_between(scene: &Scene) -> Value {
    let mut kills = 0;
    for calls in [15, 40, 70, 100, 140] {
        let mut run = scene.run();
        let seen = until(PATIENCE, || {
            (scene.record().calls.len() >= calls).then_some(())
        });
        assert!(seen.is_some(), "{}", run.log());
        run.kill();
        kills += 1;
    }
    let (job, code) = run(scene);
    assert_eq!(code, Some(0), "{job}");
    let mut ids: Vec<String> = scene
        .lines("parts")
        .iter()
        .map(|line| line["id"].to_string())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), scene.lines("parts").len()), (600, 600));
    let record = scene.record();
    let asked = record.calls.iter().flat_map(|call| &call.rows).count();
    let under_way = 6 * 3;
    println!("{kills} kills, {} rows were asked again", asked - 600);
    assert!(asked - 600 <= kills * under_way, "{asked} rows asked");
    job
}

#[test]
fn a_run_that_is_killed_pays_twice_for_what_was_under_way_alone() {
    killed_in_between(&scene(600, json!({}), Faults::default()));
}

#[test]
fn a_run_of_embeddings_that_is_killed_pays_twice_for_what_was_under_way_alone() {
    let steps = json!([{"name": "said", "model": "m"}]);
    // All in one shard, so that nothing is kept but receipts.
    let job = json!({"steps": steps, "sharding": {"targetBytes": 1 << 20}});
    let scene = scene_of("Embeddings", 600, job, Faults::default());
    let job = killed_in_between(&scene);
    let expected: Vec<Value> = scene.lines("parts");
    let undisturbed = scene_of(
        "Embeddings",
        600,
        json!({"steps": steps}),
        Faults::default(),
    );
    let (_, code) = run(&undisturbed);
    assert_eq!(code, Some(0), "{job}");
    let results = |lines: &[Value]| -> BTreeMap<String, Value> {
        let result = |line: &Value| (line["id"].to_string(), line["result"].clone());
        lines.iter().map(result).collect()
    };
    assert!(results(&expected) == results(&undisturbed.lines("parts")));
}

#[test]
fn what_was_paid_for_shards_that_were_given_up_is_not_paid_again_by_a_rerun() {
    let scene = scene(
        600,
        json!({"sharding": {"targetBytes": 1 << 20}}),
        Faults::default(),
    );
    let redis = RedisServer::start();
    step(&scene, &redis, "plan", "plan.log").succeed();
    let mut worker = step(&scene, &redis, "work", "work.log");
    let seen = until(PATIENCE, || {
        (scene.record().calls.len() >= 60).then_some(())
    });
    assert!(seen.is_some(), "{}", worker.log());
    worker.kill();
    let ended = step(&scene, &redis, "finish", "finish.log").wait();
    assert_eq!(ended.code(), Some(3), "the one shard was given up");
    let manifest = || -> Value {
        let manifest = std::fs::read(scene.path("out/manifest.json")).unwrap();
        serde_json::from_slice(&manifest).unwrap()
    };
    let paid = cost(manifest()["totals"]["cost"].as_str().unwrap());
    assert!(paid > Cost::NOTHING, "receipts are counted");

    let job = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let again = job.replace(
        r#""output":{"uri":"out"}"#,
        r#""output":{"uri":"out"},"rerunFailed":1"#,
    );
    assert_ne!(job, again);
    std::fs::write(scene.path("job.yaml"), again).unwrap();
    // Nobody knows there what was paid before, nor of the calls that the killed worker had under way.
    drop(redis);
    let redis = RedisServer::start();
    scene.work(&redis, &["again.log"]);
    assert_eq!(scene.lines("parts").len(), 600);
    let record = scene.record();
    let asked = record.calls.iter().flat_map(|call| &call.rows).count();
    assert!(
        asked - 600 <= 6 * 3,
        "{asked} rows asked: more than were under way"
    );
    let mut told = cost(manifest()["totals"]["cost"].as_str().unwrap());
    assert!(told <= billed(&record), "{told} of {}", billed(&record));
    for _ in 0..6 {
        told += dearest(&record);
    }
    assert!(told >= billed(&record), "what was paid before is forgotten");
    let receipts = scene.path("out/_millrace/runs/0001/receipts");
    let shards = std::fs::read_dir(receipts).into_iter().flatten();
    let left = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    let left = left.map(|receipt| receipt.unwrap().file_name());
    // What a killed process had half written lies there under another name.
    let left: Vec<_> = left
        .filter(|name| !name.to_string_lossy().contains('#'))
        .collect();
    assert!(
        left.is_empty(),
        "receipts of a committed shard go: {left:?}"
    );
}
