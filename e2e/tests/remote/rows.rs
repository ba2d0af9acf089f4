//! What becomes of rows where nothing goes wrong.

use millrace_stand_in::StandInOptions;
use serde_json::{Value, json};

use crate::scene::{KEY, Scene, SceneOptions};

#[test]
fn each_row_has_its_own_answer_though_several_travel_together() {
    let scene = Scene::new(SceneOptions {
        rows: 200,
        remote: json!({"rowsPerCall": 5, "limits": {"concurrency": 8}}),
        api: StandInOptions {
            latency_ms: 20,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let lines = scene.lines("parts");
    assert_eq!(lines.len(), 200);
    for (row, line) in lines.iter().enumerate() {
        assert_eq!(line["id"], format!("row-{row}"));
        let said = format!("On: Row {row}: the millwheel of row {row}");
        assert_eq!(line["result"]["said"], said);
    }
    let record = scene.record();
    assert_eq!(record.calls.len(), 40);
    assert!(record.peak().in_flight <= 8);
    assert!(record.calls.iter().all(|call| call.key == KEY));
    scene.assert_nothing_is_told(&["run.log"]);
}

#[test]
fn an_answer_with_a_schema_stands_in_the_result_as_json() {
    let schema = json!({
        "type": "object",
        "properties": {
            "mood": {"type": "string", "enum": ["good", "bad"]},
            "score": {"type": "number"},
        },
        "required": ["mood", "score"],
        "additionalProperties": false,
    });
    for (api, rows_per_call) in [("Chat", 1), ("Chat", 4), ("Responses", 1), ("Responses", 4)] {
        let prompt = json!({"system": "Judge.", "outputSchema": schema, "maxOutputTokens": 50});
        let scene = Scene::new(SceneOptions {
            rows: 12,
            remote: json!({"api": api, "rowsPerCall": rows_per_call}),
            job: json!({"steps": [{"name": "mood", "model": "m", "prompt": prompt}]}),
            ..SceneOptions::default()
        });
        scene.run().succeed();
        let lines = scene.lines("parts");
        assert_eq!(lines.len(), 12, "{api} {rows_per_call}");
        for line in lines {
            let mood = &line["result"]["mood"];
            assert!(mood["mood"] == "good" || mood["mood"] == "bad", "{line}");
            assert!(mood["score"].is_number(), "{line}");
        }
    }
}

#[test]
fn many_texts_are_embedded_in_one_call() {
    let scene = Scene::new(SceneOptions {
        rows: 5_000,
        remote: json!({"api": "Embeddings", "rowsPerCall": 2048}),
        job: json!({"steps": null}),
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let lines = scene.lines("parts");
    assert_eq!(lines.len(), 5_000);
    let is_vector = |line: &Value| {
        line["result"]["m"]
            .as_array()
            .is_some_and(|it| it.len() == 8)
    };
    assert!(lines.iter().all(is_vector));
    assert_eq!(scene.record().calls.len(), 3);
}

#[test]
fn what_is_done_is_not_paid_for_again() {
    let scene = Scene::new(SceneOptions {
        rows: 20,
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let calls = scene.record().calls.len();
    scene.run().succeed();
    assert_eq!((calls, scene.record().calls.len()), (20, 20));
}

#[test]
fn without_batches_one_row_is_asked_after_the_other() {
    let scene = Scene::new(SceneOptions {
        rows: 12,
        remote: json!({"rowsPerCall": 5, "limits": {"concurrency": 8}}),
        api: StandInOptions {
            latency_ms: 20,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    let mut command = scene.command("millrace");
    command.args(["run", "--no-batch", "-f"]);
    command.arg(scene.path("job.yaml"));
    millrace_e2e::process::Process::start(command, scene.path("run.log")).succeed();
    let record = scene.record();
    assert_eq!((record.calls.len(), record.peak().in_flight), (12, 1));
    assert_eq!(scene.lines("parts").len(), 12);
}

#[test]
fn a_hundredth_of_the_rows_changed_costs_a_hundredth() {
    let scene = Scene::new(SceneOptions {
        rows: 400,
        remote: json!({"rowsPerCall": 5}),
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let first = scene.record().calls;
    assert_eq!(first.len(), 80);
    let rows = std::fs::read_to_string(scene.path("rows.jsonl")).unwrap();
    let changed = rows.replace("of row 100\"", "of row 100, again\"");
    let changed = changed.replace("of row 200\"", "of row 200, again\"");
    let changed = changed.replace("of row 300\"", "of row 300, again\"");
    let changed = changed.replace("of row 399\"", "of row 399, again\"");
    std::fs::write(scene.path("rows.jsonl"), changed).unwrap();
    let manifests = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let next = r#""incremental":{"from":"out"},"output":{"uri":"next"}"#;
    let next = manifests.replace(r#""output":{"uri":"out"}"#, next);
    std::fs::write(scene.path("job.yaml"), next).unwrap();
    scene.run().succeed();
    let calls = scene.record().calls;
    let (tokens, again): (u64, u64) = (
        first.iter().map(|call| call.tokens).sum(),
        calls[80..].iter().map(|call| call.tokens).sum(),
    );
    assert_eq!(calls.len(), 81, "four rows fit into one call");
    assert!(again * 100 <= tokens * 2, "{again} of {tokens} tokens");
    let log = std::fs::read_to_string(scene.path("run.log")).unwrap();
    assert!(log.contains("396 unchanged"), "{log}");
    let lines = scene.lines_of("next", "parts");
    assert_eq!(lines.len(), 400);
    for (row, line) in lines.iter().enumerate() {
        let again = [100, 200, 300, 399].contains(&row);
        let again = if again { ", again" } else { "" };
        let said = format!("On: Row {row}: the millwheel of row {row}{again}");
        assert_eq!(line["result"]["said"], said);
    }
}

#[test]
fn a_missing_key_is_named_before_anything_is_asked() {
    let scene = Scene::new(SceneOptions::default());
    let mut command = scene.command("millrace");
    command.env_remove("MILLRACE_API_KEY");
    command.arg("run").arg("-f").arg(scene.path("job.yaml"));
    let mut run = millrace_e2e::process::Process::start(command, scene.path("run.log"));
    assert!(!run.wait().success());
    assert!(run.log().contains("MILLRACE_API_KEY"), "{}", run.log());
    assert!(scene.record().calls.is_empty());
}
