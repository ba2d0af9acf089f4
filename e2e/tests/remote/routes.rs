//! Rows go to the service that their route says, are sent on where an answer is not good enough, and
//! what each route and arm did is counted to the last token.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use millrace_e2e::history::commit_records;
use millrace_e2e::process::{PATIENCE, Process, binary, until};
use millrace_e2e::redis_server::RedisServer;
use millrace_leases::{JobRegistry, RedisOptions};
use millrace_protocol::cost::{Cost, Prices};
use millrace_protocol::registry::RegisteredJob;
use millrace_stand_in::{Record, StandIn, StandInOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Two services, each with an API and a key of its own, and prices for prompts and answers.
const SERVICES: [(&str, &str, &str, &str); 2] = [
    ("mini", "sk-mini", "0.15", "0.6"),
    ("large", "sk-large", "2.5", "10"),
];

/// Answers of which the small model is not sure.
const UNSURE: f64 = 0.4;

/// A job with routes in a folder of its own, and the APIs that it asks.
struct Scene {
    folder: TempDir,
    apis: Vec<StandIn>,
    runtime: Runtime,
}

impl Scene {
    /// Starts the APIs, and writes rows of these texts, a job with these routes, and its services.
    fn new(texts: &[String], routes: Value, more: Value) -> Self {
        let runtime = Runtime::new().unwrap();
        let api = |key: &str| StandInOptions {
            latency_ms: 300,
            time_factor: 20.0,
            api_key: Some(key.to_owned()),
            ..StandInOptions::default()
        };
        let start = |(_, key, _, _)| runtime.block_on(StandIn::start(api(key))).unwrap();
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
            apis: SERVICES.map(start).into(),
            runtime,
        };
        let row = |(row, text): (usize, &String)| json!({"id": row, "text": text}).to_string();
        let rows: Vec<String> = texts.iter().enumerate().map(row).collect();
        std::fs::write(scene.path("rows.jsonl"), rows.join("\n")).unwrap();
        let schema = json!({
            "type": "object",
            "properties": {"mood": {"type": "string"}, "score": {"type": "number"}},
            "required": ["mood", "score"], "additionalProperties": false,
        });
        let mut spec = json!({
            "routes": routes,
            "steps": [{"name": "said", "prompt": {"outputSchema": schema, "maxOutputTokens": 40}}],
            "input": {"uris": ["rows.jsonl"], "idField": "id"}, "output": {"uri": "out"},
            "sharding": {"targetBytes": 2048},
        });
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let manifest = |kind: &str, name: &str, spec: Value| {
            let version = "millrace.dev/v1alpha1";
            let metadata = json!({"name": name});
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
        };
        let mut manifests = manifest("BatchJob", "routed", spec).to_string();
        for (api, (name, _, input, output)) in scene.apis.iter().zip(SERVICES) {
            let remote = json!({
                "baseUrl": api.base_url(), "api": "Chat", "model": format!("{name}-1"),
                "apiKeySecretRef": {"name": name}, "limits": {"concurrency": 6},
                "pricing": {"inputPerMillionTokens": input, "outputPerMillionTokens": output},
            });
            let service = manifest("InferenceService", name, json!({"remote": remote}));
            manifests += &format!("\n---\n{service}");
        }
        std::fs::write(scene.path("job.yaml"), manifests).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        command.env("MILLRACE_MINUTE_MS", "3000");
        for (name, key, _, _) in SERVICES {
            command.env(format!("MILLRACE_API_KEY_{}", name.to_uppercase()), key);
        }
        command
    }

    fn run(&self) -> Process {
        let mut command = self.command("millrace");
        command.arg("run").arg("-f").arg(self.path("job.yaml"));
        Process::start(command, self.path("run.log"))
    }

    /// What each API was asked.
    fn records(&self) -> [Record; 2] {
        let _here = self.runtime.enter();
        [self.apis[0].record(), self.apis[1].record()]
    }

    fn manifest(&self, output: &str) -> Value {
        let manifest = std::fs::read(self.path(output).join("manifest.json")).unwrap();
        serde_json::from_slice(&manifest).unwrap()
    }

    /// The result lines of an output.
    fn lines(&self, output: &str) -> Vec<Value> {
        let parts = std::fs::read_dir(self.path(output).join("parts")).unwrap();
        let texts = parts.map(|part| std::fs::read_to_string(part.unwrap().path()).unwrap());
        let texts: Vec<String> = texts.collect();
        let lines = texts.iter().flat_map(|text| text.lines());
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// The rows that an API answered.
fn answered(record: &Record) -> BTreeSet<String> {
    record.answered().into_keys().map(str::to_owned).collect()
}

/// What the APIs would send a bill over.
fn billed(records: &[Record; 2]) -> Vec<Cost> {
    let bill = |(record, (_, _, input, output)): (&Record, (&str, &str, &str, &str))| {
        let prices = Prices::new(
            input.parse().unwrap(),
            output.parse().unwrap(),
            Cost::NOTHING,
        );
        let calls = record.with_status(200);
        calls
            .map(|call| prices.of(1, call.tokens - call.answer_tokens, call.answer_tokens))
            .sum()
    };
    records.iter().zip(SERVICES).map(bill).collect()
}

fn cost_of(tally: &Value) -> Cost {
    tally["cost"]
        .as_str()
        .map_or(Cost::NOTHING, |it| it.parse().unwrap())
}

/// Makes sure that the routes of a manifest sum up to its totals.
fn assert_routes_are_totals(manifest: &Value) {
    let (totals, routes) = (&manifest["totals"], manifest["routes"].as_array().unwrap());
    let sum = |name: &str| -> u64 { routes.iter().map(|it| it[name].as_u64().unwrap()).sum() };
    assert_eq!(totals["rows"]["succeeded"], sum("succeeded"), "{manifest}");
    assert_eq!(totals["rows"]["failed"], sum("failed"), "{manifest}");
    assert_eq!(totals["tokens"], sum("tokens"), "{manifest}");
    let cost: Cost = routes.iter().map(cost_of).sum();
    assert_eq!(cost_of(totals), cost, "{manifest}");
}

fn texts(rows: usize) -> Vec<String> {
    let short = |row| format!("short row {row}");
    let long = |row| format!("a much longer row, of which more is to be said, number {row}");
    let text = |row| if row % 4 == 3 { long(row) } else { short(row) };
    (0..rows).map(text).collect()
}

#[test]
fn the_strong_service_is_asked_about_long_rows_and_about_unsure_answers_alone() {
    let texts = texts(80);
    let escalate = json!({"when": format!("said.score < {UNSURE}"), "to": "strong"});
    let routes = json!([
        {
            "name": "cheap", "when": "text|length < 20", "serviceRef": {"name": "mini"},
            "escalate": escalate,
        },
        {"name": "strong", "serviceRef": {"name": "large"}},
    ]);
    let scene = Scene::new(&texts, routes, json!({}));
    scene.run().succeed();
    let lines = scene.lines("out");
    assert_eq!(lines.len(), 80);
    let is_short = |text: &String| text.len() < 20;
    // Both models answer alike, so that a result says how sure the small one was.
    let mut unsure = BTreeSet::new();
    for line in &lines {
        let row: usize = line["id"].as_str().unwrap().parse().unwrap();
        let score = line["result"]["said"]["score"].as_f64().unwrap();
        let is_cheap = is_short(&texts[row]) && score >= UNSURE;
        assert_eq!(
            line["route"],
            if is_cheap { "cheap" } else { "strong" },
            "{line}"
        );
        if is_short(&texts[row]) && score < UNSURE {
            unsure.insert(texts[row].clone());
        }
    }
    assert!((10..50).contains(&unsure.len()), "{unsure:?}");
    let records = scene.records();
    let (short, long): (BTreeSet<String>, BTreeSet<String>) =
        texts.iter().cloned().partition(is_short);
    assert_eq!(answered(&records[0]), short);
    assert_eq!(answered(&records[1]), &long | &unsure);
    let manifest = scene.manifest("out");
    assert_routes_are_totals(&manifest);
    let [cheap, strong] = &manifest["routes"].as_array().unwrap()[..] else {
        panic!("two routes: {manifest}");
    };
    assert_eq!(cheap["escalated"], unsure.len());
    assert_eq!(strong["succeeded"], long.len() + unsure.len());
    assert_eq!(vec![cost_of(cheap), cost_of(strong)], billed(&records));
    let log = std::fs::read_to_string(scene.path("run.log")).unwrap();
    let said = format!("cheap: {} succeeded", short.len() - unsure.len());
    assert!(log.contains(&said), "{log}");
}

fn trial() -> Value {
    json!([{"name": "trial", "arms": [
        {"serviceRef": {"name": "mini"}, "weight": 3},
        {"serviceRef": {"name": "large"}, "weight": 1},
    ]}])
}

#[test]
fn a_pods_worker_asks_each_service_with_the_key_that_is_mounted_for_it() {
    let texts = texts(80);
    let routes = json!([
        {"name": "cheap", "when": "text|length < 20", "serviceRef": {"name": "mini"}},
        {"name": "strong", "serviceRef": {"name": "large"}},
    ]);
    let scene = Scene::new(&texts, routes, json!({}));
    let secrets = scene.path("secrets");
    for (name, key, _, _) in SERVICES {
        std::fs::create_dir_all(secrets.join(name)).unwrap();
        std::fs::write(secrets.join(name).join("apiKey"), key).unwrap();
    }
    let redis = RedisServer::start();
    // As in a pod, where nothing lies beside the manifest and no key is in the environment.
    let here = |name: &str| format!("{:?}", scene.path(name));
    let manifests = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let manifests = manifests.replace("\"rows.jsonl\"", &here("rows.jsonl"));
    let manifests = manifests.replace("\"out\"", &here("out"));
    std::fs::write(scene.path("job.yaml"), &manifests).unwrap();
    let step = |step: &str| {
        let mut command = Command::new(binary("millrace-worker"));
        command.arg(step).args(["--redis", &redis.url()]);
        command
    };
    let of_job = |name: &str| {
        let mut command = step(name);
        command.arg("-f").arg(scene.path("job.yaml"));
        Process::start(command, scene.path(&format!("{name}.log"))).succeed();
    };
    of_job("plan");
    let job = RegisteredJob {
        priority: 0,
        manifests,
        credentials: None,
    };
    let registry = async {
        let registry = JobRegistry::new(&RedisOptions::new(redis.url()), "default", "mini");
        registry.unwrap().put("routed", &job).await.unwrap();
    };
    scene.runtime.block_on(registry);
    let mut serve = step("serve");
    serve.args([
        "--namespace",
        "default",
        "--service",
        "mini",
        "--pod",
        "pod",
    ]);
    serve.args(["--listen", "127.0.0.1:0", "--remote"]);
    serve.arg("--secrets").arg(&secrets);
    let worker = Process::start(serve, scene.path("serve.log"));
    let shards = std::fs::read(scene.path("out/_millrace/runs/0001/plan.json")).unwrap();
    let shards: Value = serde_json::from_slice(&shards).unwrap();
    let shards = shards["shards"].as_array().unwrap().len();
    let done = until(PATIENCE, || {
        (commit_records(&scene.path("out")).len() == shards).then_some(())
    });
    assert!(done.is_some(), "{}", worker.log());
    of_job("finish");
    let records = scene.records();
    for (record, (_, key, _, _)) in records.iter().zip(SERVICES) {
        assert!(record.calls.iter().all(|call| call.key == key));
    }
    let is_short = |text: &String| text.len() < 20;
    let (short, long): (BTreeSet<String>, BTreeSet<String>) =
        texts.iter().cloned().partition(is_short);
    assert_eq!(records.map(|record| answered(&record)), [short, long]);
    assert_routes_are_totals(&scene.manifest("out"));
}

#[test]
fn a_row_has_the_same_arm_after_a_kill_and_in_another_run() {
    let texts = texts(400);
    let scene = Scene::new(&texts, trial(), json!({}));
    let mut killed = scene.run();
    let seen = until(PATIENCE, || {
        (scene.records()[0].calls.len() >= 60).then_some(())
    });
    assert!(seen.is_some(), "{}", killed.log());
    killed.kill();
    scene.run().succeed();
    let manifests = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let next = manifests.replace(r#""output":{"uri":"out"}"#, r#""output":{"uri":"next"}"#);
    assert_ne!(manifests, next);
    std::fs::write(scene.path("job.yaml"), next).unwrap();
    scene.run().succeed();
    let arms = scene.records().map(|record| answered(&record));
    assert_eq!(
        arms[0].len() + arms[1].len(),
        400,
        "no row was asked of both"
    );
    assert!(
        (270..330).contains(&arms[0].len()),
        "{} of 400",
        arms[0].len()
    );
    for output in ["out", "next"] {
        let lines = scene.lines(output);
        assert_eq!(lines.len(), 400);
        for line in lines {
            let row: usize = line["id"].as_str().unwrap().parse().unwrap();
            let is_mini = arms[0].contains(&texts[row]);
            assert_eq!(line["route"], "trial");
            assert_eq!(
                line["arm"],
                if is_mini { "mini" } else { "large" },
                "{line}"
            );
        }
        let manifest = scene.manifest(output);
        assert_routes_are_totals(&manifest);
        assert_eq!(manifest["routes"][0]["succeeded"], arms[0].len());
    }
}

#[test]
fn a_classifier_of_ones_own_asks_the_api_about_what_it_is_not_sure_of_alone() {
    let escalate = json!({"when": "said[0].score < 0.65", "to": "strong"});
    let routes = json!([
        {"name": "own", "serviceRef": {"name": "mini"}, "escalate": escalate},
        {"name": "strong", "serviceRef": {"name": "large"}},
    ]);
    let texts = texts(60);
    let scene = Scene::new(&texts, routes, json!({}));
    let manifests = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let mut manifests: Vec<Value> = manifests
        .split("\n---\n")
        .map(|manifest| serde_json::from_str(manifest).unwrap())
        .collect();
    let model = json!({
        "name": "classifier", "task": "SequenceClassification", "labels": ["good", "bad"],
        "source": {"uri": "hf://fake/model"},
    });
    manifests[1]["spec"] = json!({"models": [model]});
    let manifests: Vec<String> = manifests.iter().map(Value::to_string).collect();
    std::fs::write(scene.path("job.yaml"), manifests.join("\n---\n")).unwrap();
    let mut command = scene.command("millrace");
    command.env("MILLRACE_FAKE_BACKEND", "micros-per-token=1");
    command.arg("run").arg("-f").arg(scene.path("job.yaml"));
    Process::start(command, scene.path("run.log")).succeed();
    let mut sent_on = BTreeSet::new();
    for line in scene.lines("out") {
        let row: usize = line["id"].as_str().unwrap().parse().unwrap();
        let said = &line["result"]["said"];
        match line["route"].as_str() {
            Some("own") => assert!(said[0]["score"].as_f64().unwrap() >= 0.65, "{line}"),
            _ => {
                assert!(said["score"].is_number(), "{line}");
                sent_on.insert(texts[row].clone());
            }
        }
    }
    assert!((5..55).contains(&sent_on.len()), "{sent_on:?}");
    assert_eq!(answered(&scene.records()[1]), sent_on);
    let manifest = scene.manifest("out");
    assert_routes_are_totals(&manifest);
    assert_eq!(manifest["routes"][0]["escalated"], sent_on.len());
}

#[test]
fn workers_share_one_budget_over_all_services() {
    let budget = "0.02";
    let more = json!({"budget": {"maxCost": budget}});
    let scene = Scene::new(&texts(800), trial(), more);
    let redis = RedisServer::start();
    let step = |step: &str, log: &str| {
        let mut command = scene.command("millrace-worker");
        command.arg(step).arg("-f").arg(scene.path("job.yaml"));
        command.args(["--redis", &redis.url(), "--lease-ttl-ms", "3000"]);
        match step {
            "work" => command.arg("--remote"),
            "finish" => command.args(["--give-up", "the budget is spent"]),
            _ => &mut command,
        };
        Process::start(command, scene.path(log))
    };
    step("plan", "plan.log").succeed();
    let mut workers = ["one.log", "two.log"].map(|log| step("work", log));
    workers.iter_mut().for_each(Process::succeed);
    let records = scene.records();
    let paid: Cost = billed(&records).into_iter().sum();
    // A call that goes beyond it costs a few hundredths of it at most.
    let most = Cost::of_parts(budget.parse::<Cost>().unwrap().parts() / 20 * 21);
    assert!(
        paid >= budget.parse().unwrap() && paid < most,
        "{paid} of {budget}"
    );
    assert_eq!(step("finish", "finish.log").wait().code(), Some(3));
    let manifest = scene.manifest("out");
    assert_routes_are_totals(&manifest);
    assert_eq!(cost_of(&manifest["totals"]), paid);
}
