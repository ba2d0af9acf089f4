//! Rows with equal contents are paid for once, whatever happens on the way.

use std::collections::HashMap;

use millrace_e2e::process::{PATIENCE, Process, until};
use millrace_e2e::redis_server::RedisServer;
use millrace_stand_in::{Faults, StandInOptions};
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions};

/// Rows, a quarter of which have the content of an earlier one, far away.
const ROWS: usize = 400;
/// Their contents.
const CONTENTS: usize = 300;

/// The content of a row.
fn content(row: usize) -> usize {
    match row % 4 {
        3 => row / 4 * 2,
        _ => row - row / 4,
    }
}

/// A job with a call for each row, in shards of some twenty rows. `job` is merged into its spec.
fn scene(job: Value, api: StandInOptions) -> Scene {
    let mut spec = json!({
        "dedup": {},
        "sharding": {"targetBytes": 2048},
        "retry": {"maxAttempts": 1},
    });
    for (name, value) in job.as_object().unwrap() {
        spec[name] = value.clone();
    }
    let scene = Scene::new(SceneOptions {
        rows: 0,
        remote: json!({"limits": {"concurrency": 10}}),
        job: spec,
        api,
    });
    let line = |row: usize| {
        let (title, text) = (format!("Row {}", content(row)), "the same in all");
        json!({"id": row.to_string(), "title": title, "text": text}).to_string()
    };
    let lines: Vec<String> = (0..ROWS).map(line).collect();
    std::fs::write(scene.path("rows.jsonl"), lines.join("\n")).unwrap();
    scene
}

fn manifest(scene: &Scene) -> Value {
    let manifest = std::fs::read(scene.path("out/manifest.json")).unwrap();
    serde_json::from_slice(&manifest).unwrap()
}

/// The line of each row by its number, result or error. No row has two, and each that is a duplicate
/// names the first row with its content.
fn lines(scene: &Scene) -> HashMap<usize, Value> {
    let mut lines = HashMap::new();
    for line in scene
        .lines("parts")
        .into_iter()
        .chain(scene.lines("errors"))
    {
        let row: usize = line["id"].as_str().unwrap().parse().unwrap();
        assert!(lines.insert(row, line).is_none(), "{row} is there twice");
    }
    assert_eq!(lines.len(), ROWS);
    for row in (3..ROWS).step_by(4) {
        let first = (0..row)
            .find(|first| content(*first) == content(row))
            .unwrap();
        let (line, of) = (&lines[&row], &lines[&first]["position"]);
        assert_eq!(&line["duplicateOf"], of, "{line}");
    }
    lines
}

/// Every row has the answer to its own content.
fn assert_answered(scene: &Scene) {
    for (row, line) in lines(scene) {
        let said = format!("On: Row {}: the same in all", content(row));
        assert_eq!(line["result"]["said"], said);
    }
    let manifest = manifest(scene);
    assert_eq!(manifest["totals"]["rows"]["succeeded"], ROWS, "{manifest}");
    let copied = &manifest["dedup"]["duplicates"];
    assert_eq!(copied, &json!(ROWS - CONTENTS), "{manifest}");
}

#[test]
fn a_quarter_of_duplicates_costs_nothing() {
    let scene = scene(json!({}), StandInOptions::default());
    let mut command = scene.command("millrace");
    command.args(["run", "--dry-run", "-o", "json", "-f"]);
    let dry = command.arg(scene.path("job.yaml")).output().unwrap();
    let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(dry["copiedRows"], ROWS - CONTENTS, "{dry}");
    assert_eq!(dry["forecast"]["rows"], CONTENTS, "{dry}");
    scene.run().succeed();
    assert_answered(&scene);
    assert_eq!(scene.record().calls.len(), CONTENTS);
    let log = std::fs::read_to_string(scene.path("run.log")).unwrap();
    assert!(log.contains("400 succeeded"), "{log}");
    assert!(log.contains("copied   100 from other rows"), "{log}");
    scene.run().succeed();
    assert_eq!(scene.record().calls.len(), CONTENTS);
}

#[test]
fn a_kill_in_the_middle_pays_for_no_row_twice() {
    let api = StandInOptions {
        latency_ms: 20,
        ..StandInOptions::default()
    };
    let scene = scene(json!({}), api);
    for calls in [60, 150, 240] {
        let mut run = scene.run();
        let seen = until(PATIENCE, || {
            (scene.record().calls.len() >= calls).then_some(())
        });
        assert!(seen.is_some(), "{}", run.log());
        run.kill();
    }
    scene.run().succeed();
    assert_answered(&scene);
    // A kill costs the calls under way.
    let calls = scene.record().calls.len();
    assert!(calls <= CONTENTS + 3 * 10, "{calls} calls");
}

#[test]
fn duplicates_of_failed_rows_fail_alike_and_are_run_again_with_them() {
    let refusing = StandInOptions {
        faults: Faults {
            // Rows 4, 40 to 49 of the contents: the even ones have duplicates.
            refused_text: Some("Row 4".to_owned()),
            ..Faults::default()
        },
        ..StandInOptions::default()
    };
    let scene = scene(json!({"maxFailedRows": "50%"}), refusing);
    scene.run().succeed();
    let refused = |row: usize| format!("Row {}", content(row)).starts_with("Row 4");
    let failed = (0..ROWS).filter(|row| refused(*row)).count();
    for (row, line) in lines(&scene) {
        match refused(row) {
            true => assert_eq!(line["error"]["code"], "refused", "{line}"),
            false => assert!(line["result"]["said"].is_string(), "{line}"),
        }
    }
    assert_eq!(manifest(&scene)["totals"]["rows"]["failed"], failed);
    let calls = scene.record().calls.len();
    assert_eq!(calls, CONTENTS);
    let job = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let again = job.replace(r#""dedup":{}"#, r#""dedup":{},"rerunFailed":1"#);
    std::fs::write(scene.path("job.yaml"), again).unwrap();
    scene.run().succeed();
    let contents = (0..CONTENTS).filter(|it| format!("Row {it}").starts_with("Row 4"));
    assert_eq!(scene.record().calls.len() - calls, contents.count());
    // The errors of the first run lie beside those of the second, which the manifest names.
    let totals = manifest(&scene)["totals"]["rows"].clone();
    assert_eq!(totals["failed"], failed);
    assert_eq!(totals["succeeded"], ROWS - failed);
}

#[test]
fn workers_copy_when_finish_has_seen_that_all_others_have_ended() {
    let scene = scene(json!({}), StandInOptions::default());
    let redis = RedisServer::start();
    let all_work = || {
        let logs = ["one.log", "two.log"];
        let mut workers = logs.map(|log| scene.step(&redis, "work", log));
        workers.iter_mut().for_each(Process::succeed);
    };
    scene.step(&redis, "plan", "plan.log").succeed();
    all_work();
    assert_eq!(scene.record().calls.len(), CONTENTS);
    assert_eq!(scene.lines("parts").len(), CONTENTS);
    // Shards are open, and were queued.
    let finish = || scene.step(&redis, "finish", "finish.log").wait().code();
    assert_eq!(finish(), Some(4));
    // A lease store that forgets them all is told of them once more.
    let _: String = redis.command(&["FLUSHALL"]);
    scene.step(&redis, "plan", "plan.log").succeed();
    assert_eq!(finish(), Some(4));
    all_work();
    assert_eq!(finish(), Some(0));
    assert_answered(&scene);
    assert_eq!(scene.record().calls.len(), CONTENTS);
}
