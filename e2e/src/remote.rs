//! A job over rows in a folder of its own, and the stand-in that it asks.

use std::path::PathBuf;
use std::process::Command;

use millrace_stand_in::{Record, StandIn, StandInOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::process::{Process, binary};
use crate::redis_server::RedisServer;

/// The key of the tests, which must stand nowhere but in the stand-in's record.
pub const KEY: &str = "sk-not-to-be-seen";

/// A word of every row, which must stand in no log.
pub const WORD: &str = "millwheel";

/// A job in a folder of its own.
pub struct Scene {
    folder: TempDir,
    stand_in: StandIn,
    /// What the stand-in runs in; none while it is stopped.
    runtime: Option<Runtime>,
    time_factor: f64,
}

/// What a scene is made of.
pub struct SceneOptions {
    /// Number of rows.
    pub rows: usize,
    /// Fields of `spec.remote` besides the address.
    pub remote: Value,
    /// Fields of the BatchJob's spec besides input and output.
    pub job: Value,
    /// How the API behaves.
    pub api: StandInOptions,
}

impl Default for SceneOptions {
    fn default() -> Self {
        Self {
            rows: 10,
            remote: json!({}),
            job: json!({}),
            api: StandInOptions::default(),
        }
    }
}

/// A hundred comments by an API that takes fifteen requests a minute and four seconds for each.
pub fn comments(rows_per_call: u32, time_factor: f64) -> SceneOptions {
    SceneOptions {
        rows: 100,
        remote: json!({"rowsPerCall": rows_per_call, "limits": {"requestsPerMinute": 15}}),
        api: StandInOptions {
            requests_per_minute: Some(15),
            latency_ms: 4_000,
            time_factor,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    }
}

/// A transcript in chunks by an API that takes twenty seconds for a call, 500 requests and a million
/// tokens a minute. Five chunks make a call; `remote` says what else is to hold.
pub fn transcript(chunks: usize, remote: Value, time_factor: f64) -> SceneOptions {
    let mut service = json!({
        "rowsPerCall": 5,
        "timeout": "30s",
        "limits": {"requestsPerMinute": 500, "tokensPerMinute": 1_000_000, "concurrency": 50},
    });
    merge(&mut service, remote);
    SceneOptions {
        rows: chunks,
        remote: service,
        // Four hundred rows or so: eighty calls, of which a worker has two times as many to choose from.
        job: json!({"sharding": {"targetBytes": 30_000}}),
        api: StandInOptions {
            requests_per_minute: Some(500),
            tokens_per_minute: Some(1_000_000),
            latency_ms: 20_000,
            time_factor,
            ..StandInOptions::default()
        },
    }
}

impl Scene {
    /// Starts the stand-in, and writes rows and manifests.
    pub fn new(options: SceneOptions) -> Self {
        let SceneOptions {
            rows,
            remote,
            job,
            api,
        } = options;
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let time_factor = api.time_factor;
        let stand_in = runtime.block_on(StandIn::start(api)).unwrap();
        let scene = Self {
            folder,
            stand_in,
            runtime: Some(runtime),
            time_factor,
        };
        scene.write_rows(0..rows);
        let mut service = json!({
            "baseUrl": scene.stand_in.base_url(), "api": "Chat", "model": "m",
            "apiKeySecretRef": {"name": "api"},
        });
        merge(&mut service, remote);
        let mut spec = json!({
            "serviceRef": {"name": "api"},
            "steps": [{"name": "said", "model": "m", "prompt": {"template": "{{ title }}: {{ text }}"}}],
            "input": {"uris": ["rows.jsonl"], "idField": "id", "textField": "text"},
            "output": {"uri": "out"},
        });
        merge(&mut spec, job);
        let manifest = |kind: &str, name: &str, spec: Value| {
            json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": kind,
                "metadata": {"name": name}, "spec": spec,
            })
        };
        let service = manifest("InferenceService", "api", json!({"remote": service}));
        let job = manifest("BatchJob", "scene", spec);
        std::fs::write(scene.path("job.yaml"), format!("{service}\n---\n{job}\n")).unwrap();
        scene
    }

    /// Writes rows of these numbers.
    pub fn write_rows(&self, rows: std::ops::Range<usize>) {
        let line = |row: usize| {
            let text = format!("the {WORD} of row {row}");
            json!({"id": format!("row-{row}"), "title": format!("Row {row}"), "text": text})
                .to_string()
        };
        let lines: Vec<String> = rows.map(line).collect();
        std::fs::write(self.path("rows.jsonl"), lines.join("\n")).unwrap();
    }

    /// A path below the scene's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command that knows the key, and how fast time passes.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        let minute_ms = (60_000.0 / self.time_factor) as u64;
        command
            .env("MILLRACE_API_KEY", KEY)
            .env("MILLRACE_MINUTE_MS", minute_ms.to_string());
        command
    }

    /// Starts `millrace run`.
    pub fn run(&self) -> Process {
        let mut command = self.command("millrace");
        command.arg("run").arg("-f").arg(self.path("job.yaml"));
        Process::start(command, self.path("run.log"))
    }

    /// Starts one step of `millrace-worker`, as a pod would.
    pub fn step(&self, redis: &RedisServer, step: &str, log: &str) -> Process {
        let mut command = self.command("millrace-worker");
        command.arg(step).arg("-f").arg(self.path("job.yaml"));
        command.args(["--redis", &redis.url(), "--lease-ttl-ms", "10000"]);
        if step == "work" {
            command.arg("--remote");
        }
        Process::start(command, self.path(log))
    }

    /// Works the job off by as many workers as there are `logs`, from its plan to its finish.
    pub fn work(&self, redis: &RedisServer, logs: &[&str]) {
        self.step(redis, "plan", "plan.log").succeed();
        let working = logs.iter().map(|log| self.step(redis, "work", log));
        let mut working: Vec<Process> = working.collect();
        working.iter_mut().for_each(Process::succeed);
        self.step(redis, "finish", "finish.log").succeed();
    }

    /// What the stand-in was asked so far.
    pub fn record(&self) -> Record {
        self.stand_in.record()
    }

    /// Ends the stand-in, with all calls that are under way.
    pub fn stop_api(&mut self) {
        drop(self.runtime.take());
    }

    /// Starts a stopped stand-in again, on the same port and with what it recorded.
    pub fn start_api_again(&mut self) {
        assert!(self.runtime.is_none(), "the stand-in runs");
        let runtime = Runtime::new().unwrap();
        runtime.block_on(self.stand_in.start_again()).unwrap();
        self.runtime = Some(runtime);
    }

    /// The lines of all parts, or of all error files.
    pub fn lines(&self, folder: &str) -> Vec<Value> {
        self.lines_of("out", folder)
    }

    /// The same of another output, without the files that are still being written.
    pub fn lines_of(&self, output: &str, folder: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        let files = std::fs::read_dir(self.path(output).join(folder));
        let paths = files.into_iter().flatten().map(|file| file.unwrap().path());
        for path in paths.filter(|path| path.extension().is_some_and(|it| it == "jsonl")) {
            let text = std::fs::read_to_string(path).unwrap();
            let parsed = text.lines().map(|line| serde_json::from_str(line).unwrap());
            lines.extend(parsed);
        }
        lines.sort_by_key(|line: &Value| line["position"]["offset"].as_u64());
        lines
    }

    /// Makes sure that neither the key nor what stands in rows is in a log.
    pub fn assert_nothing_is_told(&self, logs: &[&str]) {
        for log in logs {
            let text = std::fs::read_to_string(self.path(log)).unwrap();
            assert!(!text.contains(KEY), "{log} holds the key:\n{text}");
            assert!(!text.contains(WORD), "{log} holds a row:\n{text}");
        }
    }
}

fn merge(into: &mut Value, more: Value) {
    for (name, value) in more.as_object().unwrap() {
        into[name] = value.clone();
    }
}
