//! `millrace run`: arguments, displays and exit codes. What a run survives is tested in e2e.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Ended, JOB, command, manifest, millrace};

const ROWS: usize = 200;

/// A folder with manifest and input; the fourth row is bad.
struct Scene {
    folder: tempfile::TempDir,
    manifest: PathBuf,
}

impl Scene {
    fn new() -> Self {
        Self::with_job(JOB)
    }

    fn with_job(job: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest(folder.path(), job);
        let row = |index| match index {
            3 => "{\"text\": \n".to_owned(),
            index => format!("{{\"text\": \"review number {index}\"}}\n"),
        };
        let rows: String = (0..ROWS).map(row).collect();
        std::fs::write(folder.path().join("reviews.jsonl"), rows).unwrap();
        Self { folder, manifest }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command(&["run", "-f", self.manifest.to_str().unwrap()]);
        command.args(arguments).env("MILLRACE_FAKE_BACKEND", "");
        command.env("MILLRACE_INFERENCE_SERVER", server());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }
}

/// The server that was built beside the program.
fn server() -> PathBuf {
    let path =
        Path::new(env!("CARGO_BIN_EXE_millrace")).with_file_name("millrace-inference-server");
    assert!(
        path.exists(),
        "{} is missing: run cargo build --release -p millrace-inference-server",
        path.display()
    );
    path
}

#[test]
fn a_run_ends_with_a_summary_and_its_results_can_be_read() {
    let scene = Scene::new();
    let ended = scene.run(&[]).expect_code(0);
    assert!(
        ended.stdout.contains("199 succeeded, 1 failed, 0 skipped"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("invalid_json"), "{ended:?}");
    let output = scene.output();
    let results = millrace(&["results", output.to_str().unwrap()]).expect_code(0);
    assert_eq!(results.lines().len(), ROWS - 1);
    assert_eq!(results.stderr, "");
    let errors = millrace(&["errors", output.to_str().unwrap()]).expect_code(0);
    assert_eq!(errors.lines().len(), 1);
}

#[test]
fn a_finished_job_is_not_run_again() {
    let scene = Scene::new();
    scene.run(&[]).expect_code(0);
    // Nothing is computed, so no server is needed.
    let ended = scene
        .run(&["--inference-server", "/bin/false"])
        .expect_code(0);
    assert!(
        ended.stdout.contains("was finished before: nothing to do"),
        "{ended:?}"
    );
}

#[test]
fn input_that_changed_since_a_job_was_finished_is_named_with_what_to_do() {
    let scene = Scene::new();
    scene.run(&[]).expect_code(0);
    let rows = scene.folder.path().join("reviews.jsonl");
    let mut text = std::fs::read_to_string(&rows).unwrap();
    text.push_str("{\"text\": \"one more\"}\n");
    std::fs::write(&rows, text).unwrap();
    let ended = scene.run(&[]).expect_code(1);
    for word in ["reviews.jsonl", "spec.incremental.from"] {
        assert!(ended.stderr.contains(word), "{ended:?}");
    }
    assert!(ended.stderr.contains("bytes instead of"), "{ended:?}");
    let dry = scene.run(&["--dry-run"]).expect_code(1);
    assert_eq!(dry.stderr, ended.stderr);
    // Where it is gone there is nothing to say.
    std::fs::remove_file(&rows).unwrap();
    scene.run(&[]).expect_code(0);
}

#[test]
fn input_that_was_touched_is_told_from_another_and_nothing_is_begun_for_it() {
    let scene = Scene::new();
    let mut first = scene.command(&[]);
    first.env("MILLRACE_FAKE_BACKEND", "fail-on=7");
    Ended::from(first.output().unwrap()).expect_code(0);
    let rows = scene.folder.path().join("reviews.jsonl");
    let rows = std::fs::File::options().append(true).open(rows).unwrap();
    rows.set_modified(std::time::UNIX_EPOCH).unwrap();
    let touched = "it is as long as it was, but was written or replaced since";
    let ended = scene.run(&[]).expect_code(1);
    assert!(ended.stderr.contains(touched), "{ended:?}");
    let file = scene.manifest.to_str().unwrap();
    let retried = millrace(&["retry", "-f", file, "--failed-only"]).expect_code(1);
    assert_eq!(retried.stderr, ended.stderr);
    assert!(!scene.output().join("_millrace/runs/0002").exists());
}

#[test]
fn a_dry_run_ends_as_a_run_would_where_that_cannot_work() {
    let scene = Scene::new();
    let broken = ["--dry-run", "--inference-server", "/bin/false"];
    let ended = scene.run(&broken).expect_code(1);
    assert_eq!(ended.stdout, "", "nothing is guessed");
    assert_eq!(ended.stderr.matches("error: ").count(), 1, "{ended:?}");

    let mut stopped = scene.command(&[]);
    stopped.env("MILLRACE_FAKE_BACKEND", "micros-per-token=100000");
    stopped.stdout(Stdio::null()).stderr(Stdio::null());
    let mut stopped = stopped.spawn().unwrap();
    let plan = scene.output().join("_millrace/runs/0001/plan.json");
    while !plan.exists() {
        assert_eq!(
            stopped.try_wait().unwrap(),
            None,
            "it ended before its plan"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    manifest(
        scene.folder.path(),
        &JOB.replace(
            "uris: [reviews.jsonl]",
            "uris: [reviews.jsonl], idField: id",
        ),
    );
    let ended = scene.run(&["--dry-run"]).expect_code(1);
    let said = "was planned by another spec (spec.input.idField was absent";
    assert!(ended.stderr.contains(said), "{ended:?}");

    manifest(scene.folder.path(), JOB);
    let rows = scene.folder.path().join("reviews.jsonl");
    std::fs::write(&rows, "{\"text\": \"another\"}\n").unwrap();
    let ended = scene.run(&["--dry-run"]).expect_code(3);
    assert!(ended.stderr.contains("bytes instead of"), "{ended:?}");
}

#[test]
fn a_dry_run_of_a_finished_job_says_that_there_is_nothing_to_do() {
    let scene = Scene::new();
    scene.run(&[]).expect_code(0);
    let ended = scene.run(&["--dry-run"]).expect_code(0);
    assert!(ended.stdout.contains("nothing to do"), "{ended:?}");
}

#[test]
fn a_dry_run_at_an_api_misses_its_key_and_the_fields_of_its_prompts() {
    let service = "
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: sentiment}
spec:
  remote:
    baseUrl: http://127.0.0.1:1/v1
    api: Chat
    model: m
    apiKeySecretRef: {name: open-ai}
";
    let prompt = "{name: a, model: m, prompt: {template: '{{ projekt }}: {{ text }}'}}";
    let job = format!("{service}---{JOB}  steps: [{prompt}]\n");
    let scene = Scene::new();
    std::fs::write(&scene.manifest, job).unwrap();
    let dry = scene.run(&["--dry-run"]).expect_code(1);
    assert!(dry.stderr.contains("MILLRACE_API_KEY_OPEN_AI"), "{dry:?}");
    let ended = scene.run(&[]).expect_code(1);
    assert_eq!(ended.stderr, dry.stderr);
    assert!(!scene.output().exists());
    let mut dry = scene.command(&["--dry-run"]);
    let dry = dry.env("MILLRACE_API_KEY_OPEN_AI", "any").output();
    let dry = Ended::from(dry.unwrap()).expect_code(0);
    let lacks = "sampled rows lack the field \"projekt\"";
    assert!(dry.stdout.contains(lacks), "{dry:?}");
    assert!(!dry.stdout.contains("guess"), "{dry:?}");
}

#[test]
fn the_last_json_line_is_the_job_with_its_status() {
    let scene = Scene::new();
    let ended = scene.run(&["-o", "json"]).expect_code(0);
    for line in ended.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let job: Value = serde_json::from_str(ended.lines().last().unwrap()).unwrap();
    assert_eq!(job["kind"], "BatchJob");
    let status = &job["status"];
    assert_eq!(
        status["rows"],
        serde_json::json!({"succeeded": 199, "failed": 1, "skipped": 0})
    );
    assert_eq!(status["progress"], "100%");
    assert_eq!(status["conditions"][0]["type"], "Succeeded");
    assert_eq!(status["conditions"][0]["status"], "True");
    assert_eq!(status["sampleErrors"][0]["code"], "invalid_json");
}

#[test]
fn a_retry_of_a_local_run_asks_for_its_failed_rows_alone() {
    let scene = Scene::with_job(&format!("{JOB}  retry: {{maxAttempts: 1}}\n"));
    let file = scene.manifest.to_str().unwrap();
    let retry = || {
        let mut command = command(&["retry", "-f", file, "--failed-only"]);
        command.env("MILLRACE_FAKE_BACKEND", "");
        command.env("MILLRACE_INFERENCE_SERVER", server());
        Ended::from(command.output().unwrap())
    };
    let ended = retry().expect_code(1);
    assert!(
        ended.stderr.contains("is not finished in file://"),
        "{ended:?}"
    );
    let mut first = scene.command(&[]);
    first.env("MILLRACE_FAKE_BACKEND", "fail-on=7");
    let ended = Ended::from(first.output().unwrap()).expect_code(0);
    assert!(
        ended.stdout.contains("198 succeeded, 2 failed"),
        "{ended:?}"
    );
    let ended = retry().expect_code(0);
    assert!(
        ended.stdout.contains("199 succeeded, 1 failed"),
        "{ended:?}"
    );
    let plan = scene.output().join("_millrace/runs/0002/plan.json");
    let plan: Value = serde_json::from_slice(&std::fs::read(plan).unwrap()).unwrap();
    assert!(plan["shards"][0]["failed_in"].is_object(), "{plan}");
    let results = millrace(&["results", scene.output().to_str().unwrap()]).expect_code(0);
    assert_eq!(results.lines().len(), ROWS - 1);
    let ended = scene.run(&[]).expect_code(0);
    assert!(ended.stdout.contains("was finished before"), "{ended:?}");

    // What is asked of the output anew is done in the run that is there, and no further one is begun.
    let merged = JOB.replace("uri: out", "uri: out, merge: true");
    manifest(
        scene.folder.path(),
        &format!("{merged}  retry: {{maxAttempts: 1}}\n"),
    );
    scene.run(&[]).expect_code(0);
    assert!(scene.output().join("results.jsonl").exists());
    assert!(!scene.output().join("_millrace/runs/0003").exists());
}

#[test]
fn a_retry_of_a_local_run_without_failures_is_refused() {
    let scene = Scene::new();
    let rows = scene.folder.path().join("reviews.jsonl");
    std::fs::write(&rows, "{\"text\": \"good\"}\n").unwrap();
    scene.run(&[]).expect_code(0);
    let file = scene.manifest.to_str().unwrap();
    let ended = millrace(&["retry", "-f", file, "--failed-only"]).expect_code(1);
    assert!(ended.stderr.contains("nothing to run again"), "{ended:?}");
}

#[test]
fn a_model_that_cannot_be_loaded_is_mended_without_another_output() {
    let scene = Scene::new();
    let mut run = scene.command(&[]);
    // The models are opened, and there is none.
    run.env_remove("MILLRACE_FAKE_BACKEND");
    run.env("MILLRACE_MODEL_CACHE", scene.folder.path());
    let ended = Ended::from(run.output().unwrap()).expect_code(1);
    let why = "`hf download acme/minilm --local-dir ";
    assert_eq!(ended.stderr.matches(why).count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("spec.models[0]: "), "{ended:?}");
    assert!(!scene.output().exists(), "nothing is written: {ended:?}");
    let text = std::fs::read_to_string(&scene.manifest).unwrap();
    let mended = text.replace("hf://acme/minilm", "hf://acme/minilm-l6");
    std::fs::write(&scene.manifest, mended).unwrap();
    scene.run(&[]).expect_code(0);
}

#[test]
fn a_dry_run_counts_bad_rows_and_writes_nothing() {
    let scene = Scene::new();
    let ended = scene.run(&["--dry-run"]).expect_code(0);
    assert!(
        ended.stdout.contains("rows         199 (read in"),
        "{ended:?}"
    );
    assert!(
        ended
            .stdout
            .contains("invalid_json 1 row, first at file://"),
        "{ended:?}"
    );
    let ended = scene.run(&["--dry-run", "-o", "json"]).expect_code(0);
    let json: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json["preflight"]["rows"], 199);
    assert_eq!(json["shards"], 1);
    assert!(!scene.output().exists());
}

#[test]
fn a_dry_run_of_an_incremental_job_asks_for_new_and_changed_rows_alone() {
    let scene = Scene::new();
    scene.run(&[]).expect_code(0);
    let rows = scene.folder.path().join("reviews.jsonl");
    let mut text = std::fs::read_to_string(&rows).unwrap();
    text.push_str("{\"text\": \"one more\"}\n{\"text\": \"one more\"}\n");
    std::fs::write(&rows, text).unwrap();
    let next = JOB.replace("uri: out", "uri: next");
    let dry_run = |more: &str| {
        manifest(scene.folder.path(), &format!("{next}{more}"));
        let dry = scene.run(&["--dry-run", "-o", "json"]).expect_code(0);
        serde_json::from_str::<Value>(&dry.stdout).unwrap()
    };
    let incremental = "  incremental: {from: out}\n";
    let found = dry_run(incremental);
    assert_eq!(found["preflight"]["rows"], 201, "{found}");
    assert_eq!(found["difference"]["unchanged"], 199, "{found}");
    assert_eq!(found["askedRows"], 2, "{found}");
    let found = dry_run("  dedup: {}\n");
    assert_eq!(
        (&found["copiedRows"], &found["askedRows"]),
        (&1.into(), &200.into())
    );
    assert_eq!(
        found["preflight"]["duplicates"],
        Value::Null,
        "one number of duplicates"
    );
    assert!(!scene.folder.path().join("next").exists());
    manifest(scene.folder.path(), &format!("{next}{incremental}"));
    let said = scene.run(&["--dry-run"]).expect_code(0).stdout;
    assert!(said.contains("199 unchanged from file://"), "{said}");
    assert!(said.contains("asked        2 rows"), "{said}");
}

#[test]
fn a_dry_run_measures_what_computing_takes_and_not_the_cache() {
    let scene = Scene::new();
    let manifest = std::fs::read_to_string(&scene.manifest).unwrap();
    let with_cache = manifest.replace("  models:", "  cache: {enabled: true}\n  models:");
    assert_ne!(manifest, with_cache);
    std::fs::write(&scene.manifest, with_cache).unwrap();
    let mut command = scene.command(&["--dry-run", "-o", "json"]);
    let dry = command.env("MILLRACE_FAKE_BACKEND", "micros-per-token=1000");
    let ended = Ended::from(dry.output().unwrap()).expect_code(0);
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    // Three tokens of a millisecond each.
    let rate = found["rowsPerSecond"].as_f64().expect("it is measured");
    assert!(rate < 334.0, "{rate}");
}

#[test]
fn a_manifest_that_is_refused_exits_with_2() {
    let scene = Scene::with_job(&JOB.replace("uris", "urls"));
    let ended = scene.run(&[]).expect_code(2);
    assert!(
        ended.stderr.contains("spec.input.urls: unknown field"),
        "{ended:?}"
    );
    assert!(!scene.output().exists());
}

#[test]
fn an_input_that_is_not_there_is_named() {
    let scene = Scene::with_job(&JOB.replace("reviews.jsonl", "nothing-*.jsonl"));
    let ended = scene.run(&[]).expect_code(1);
    assert!(ended.stderr.contains("spec.input.uris[0]: "), "{ended:?}");
    assert!(ended.stderr.contains("nothing-*.jsonl"), "{ended:?}");
    assert!(ended.stderr.contains("no file"), "{ended:?}");
}

#[test]
fn a_server_that_cannot_run_ends_the_run_with_its_reason() {
    let scene = Scene::new();
    let ended = scene
        .run(&["--inference-server", "/nowhere/server"])
        .expect_code(1);
    assert!(
        ended.stderr.contains("/nowhere/server does not exist"),
        "{ended:?}"
    );
    let ended = scene
        .run(&["--inference-server", "/bin/false"])
        .expect_code(1);
    assert!(ended.stderr.contains("before it was ready"), "{ended:?}");
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_does() {
    let job = JOB.replace("uri: out", "uri: out}\n  sharding: {targetBytes: 1024");
    let scene = Scene::with_job(&job);
    let mut child = scene
        .command(&["-o", "text"])
        .env("MILLRACE_FAKE_BACKEND", "micros-per-token=5000")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The line comes when the run is planned, after what the server says while it starts; the signal handler
    // is there by the time the first shard is committed.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let is_planned = |line: String| line.starts_with("reviews: 1 file, ");
    let mut lines = stderr.by_ref().lines().map(Result::unwrap);
    assert!(lines.any(is_planned), "the run ended before its plan");
    let commits = scene.output().join("_millrace/runs/0001/commits");
    while std::fs::read_dir(&commits).map_or(0, Iterator::count) == 0 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the run ended before its first commit"
        );
        std::thread::yield_now();
    }
    // SAFETY: kill takes no pointers, and the child is not reaped yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let code = child.wait().unwrap().code();
    let said: String = stderr
        .lines()
        .map(Result::unwrap)
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(code, Some(130), "{said}");
    assert!(
        said.contains("stopping: commits in flight are finished"),
        "{said}"
    );
    assert!(said.contains("The same command goes on"), "{said}");
    let ended = scene.run(&[]).expect_code(0);
    assert!(ended.stderr.contains("going on: "), "{ended:?}");
    assert!(
        ended.stdout.contains("199 succeeded, 1 failed"),
        "{ended:?}"
    );
}

/// What a running command answers at its board to whoever brings a token.
fn ask(address: &str, path: &str, accepted: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {accepted}\r\n\
         Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn a_run_tells_how_far_it_is_to_whoever_asks_and_to_whoever_stays() {
    let scene =
        Scene::with_job(&JOB.replace("uri: out", "uri: out}\n  sharding: {targetBytes: 1024"));
    let mut child = scene
        .command(&["--serve", "127.0.0.1:0"])
        .env("MILLRACE_SERVE_TOKEN", "s3cret")
        .env("MILLRACE_FAKE_BACKEND", "micros-per-token=3000")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("progress at http://").unwrap();
    let (address, path) = url.split_at(url.find('/').unwrap());
    assert_eq!(path, "/api/v1/jobs/reviews/progress");

    let refused = ask(address, path, "*/*", "guess");
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let now = ask(address, path, "*/*", "s3cret");
    let body = now.split_once("\r\n\r\n").unwrap().1;
    let now: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&now["name"], &now["run"]), (&"reviews".into(), &1.into()));
    let other = ask(address, "/api/v1/jobs/other/progress", "*/*", "s3cret");
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");

    let results = path.replace("/progress", "/results?follow=true&limit=20");
    let refused = ask(address, &results, "*/*", "guess");
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let lines = ask(address, &results, "*/*", "s3cret");
    assert_eq!(lines.matches("\"position\"").count(), 20, "{lines}");

    // This one stays until the end.
    let events = ask(address, path, "text/event-stream", "s3cret");
    let news: Vec<Value> = events
        .lines()
        .filter_map(|line| line.split_once("data: "))
        .map(|(_, data)| serde_json::from_str(data).unwrap())
        .collect();
    let last = news.last().unwrap();
    assert!(events.contains("event: progress"), "{events}");
    assert!(events.contains("event: end"), "{events}");
    assert_eq!(last["phase"], "Succeeded");
    let rows = (
        &last["progress"]["rowsSucceeded"],
        &last["progress"]["rowsFailed"],
    );
    assert_eq!(rows, (&199.into(), &1.into()));
    let committed = |news: &Value| news["progress"]["shardsCommitted"].as_u64().unwrap_or(0);
    assert!(news.is_sorted_by_key(committed), "{news:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_dry_run_names_the_fields_of_expressions_that_no_row_has() {
    let filter = "uris: [reviews.jsonl], filter: {expression: 'starz > 3'}";
    let job = JOB.replace("uris: [reviews.jsonl]", filter);
    assert_ne!(job, JOB, "{JOB}");
    let ended = Scene::with_job(&job).run(&["--dry-run"]).expect_code(0);
    let expected = "no row has the field \"starz\", which spec.input.filter.expression names";
    assert!(ended.stdout.contains(expected), "{ended:?}");
}

#[test]
fn what_a_job_has_not_is_not_proposed_to_be_looked_at() {
    let scene = Scene::new();
    let rows = scene.folder.path().join("reviews.jsonl");
    std::fs::write(&rows, "{\"text\": \n").unwrap();
    let ended = scene.run(&[]).expect_code(0);
    assert!(ended.stdout.contains("millrace errors "), "{ended:?}");
    assert!(!ended.stdout.contains("millrace results "), "{ended:?}");
    let job = scene.folder.path().join("alone").join("job.yaml");
    std::fs::create_dir(job.parent().unwrap()).unwrap();
    std::fs::write(&job, JOB).unwrap();
    let ended = millrace(&["run", "-f", job.to_str().unwrap()]).expect_code(2);
    assert!(ended.stderr.contains("(found none)"), "{ended:?}");
}

#[test]
fn a_run_is_not_served_to_other_machines_without_a_token() {
    let scene = Scene::with_job(JOB);
    let ended = scene.run(&["--serve", "0.0.0.0:0"]).expect_code(2);
    assert!(ended.stderr.contains("--serve-token-file"), "{ended:?}");
    let empty = scene.folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let file = empty.to_str().unwrap();
    let ended = scene.run(&["--serve", "0.0.0.0:0", "--serve-token-file", file]);
    let ended = ended.expect_code(2);
    assert!(ended.stderr.contains("1 to 4096 bytes"), "{ended:?}");
}
