//! Long texts in the prompts of an API: each chunk is asked with the other fields of its row.

use millrace_e2e::process::{PATIENCE, until};
use millrace_stand_in::{Faults, StandInOptions};
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions};

/// What the API refuses to read.
const REFUSED: &str = "sluicegate";

/// Rows of so many sentences of thirty letters, each of which fills a chunk.
fn write_rows(scene: &Scene, sentences: &[usize]) {
    let mut lines = String::new();
    for (row, &count) in sentences.iter().enumerate() {
        let sentence = |index: usize| match (row, index) {
            (1, 2) => format!("It says {REFUSED} {index:02} and more."),
            _ => format!("It is millwheel {row:02}/{index:02} again."),
        };
        let text: Vec<String> = (0..count).map(sentence).collect();
        let line = json!({"id": row, "title": format!("Row {row}"), "text": text.join(" ")});
        lines += &format!("{line}\n");
    }
    std::fs::write(scene.path("rows.jsonl"), lines).unwrap();
}

#[test]
fn each_chunk_is_asked_and_paid_for_once_though_the_run_was_killed() {
    let chunking = json!({"by": "Sentences", "maxTokens": 16});
    let input = json!({
        "uris": ["rows.jsonl"], "idField": "id", "textField": "text", "chunking": chunking,
    });
    let scene = Scene::new(SceneOptions {
        remote: json!({"limits": {"concurrency": 1}}),
        job: json!({"input": input}),
        api: StandInOptions {
            latency_ms: 5,
            faults: Faults {
                refused_text: Some(REFUSED.to_owned()),
                ..Faults::default()
            },
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    let sentences = [12, 5, 1, 30];
    write_rows(&scene, &sentences);
    let mut run = scene.run();
    let is_asked = || (scene.record().calls.len() > 10).then_some(());
    until(PATIENCE, is_asked).expect("calls");
    run.kill();
    scene.run().succeed();

    let lines = scene.lines("parts");
    let ids: Vec<&Value> = lines.iter().map(|line| &line["id"]).collect();
    assert_eq!(ids, ["0", "2", "3"]);
    for line in &lines {
        let row: usize = line["id"].as_str().unwrap().parse().unwrap();
        let chunks = line["result"]["said"].as_array().unwrap();
        assert_eq!(chunks.len(), sentences[row]);
        for (index, chunk) in chunks.iter().enumerate() {
            let said = format!("On: Row {row}: It is millwheel {row:02}/{index:02} again.");
            assert_eq!(chunk["result"], said);
            let (start, end) = (index * 29, index * 29 + 28);
            assert_eq!(
                (&chunk["start"], &chunk["end"]),
                (&json!(start), &json!(end))
            );
        }
    }
    let errors = scene.lines("errors");
    assert_eq!(errors.len(), 1, "{errors:?}");
    let error = &errors[0]["error"];
    assert_eq!(
        (&errors[0]["id"], &error["step"]),
        (&json!("1"), &json!("said"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with("chunk 3 of 5 (characters 58 to "),
        "{message}"
    );

    // What was being asked when the run was killed is asked again, and what was refused.
    let calls = scene.record().calls.len();
    let chunks: usize = sentences.iter().sum();
    assert!(
        (chunks..=chunks + 2).contains(&calls),
        "{calls} calls of {chunks} chunks"
    );
}
