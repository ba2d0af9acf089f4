//! Answers that come piece by piece are the same answers.

use millrace_stand_in::{Faults, StandInOptions};
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions};

#[test]
fn a_streamed_answer_is_the_same_one_and_costs_the_same() {
    for (api, rows_per_call) in [("Chat", 1), ("Chat", 4), ("Responses", 1), ("Responses", 4)] {
        let scene = Scene::new(SceneOptions {
            rows: 20,
            remote: json!({"api": api, "rowsPerCall": rows_per_call, "stream": true}),
            ..SceneOptions::default()
        });
        scene.run().succeed();
        let lines = scene.lines("parts");
        assert_eq!(lines.len(), 20);
        for (row, line) in lines.iter().enumerate() {
            let said = format!("On: Row {row}: the millwheel of row {row}");
            assert_eq!(line["result"]["said"], said, "{api} {rows_per_call}");
        }
        let calls = scene.record().calls;
        assert_eq!(calls.len(), 20 / rows_per_call);
        assert!(calls.iter().all(|call| call.is_streamed));
        let manifest = std::fs::read(scene.path("out/manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let tokens: u64 = calls.iter().map(|call| call.tokens).sum();
        assert_eq!(manifest["totals"]["tokens"], tokens, "{manifest}");
    }
}

#[test]
fn a_stream_that_ends_or_stops_in_its_middle_is_asked_for_again() {
    for api in ["Chat", "Responses"] {
        let scene = Scene::new(SceneOptions {
            rows: 60,
            remote: json!({
                "api": api, "rowsPerCall": 2, "stream": true, "timeout": "1s",
                "limits": {"concurrency": 10},
            }),
            job: json!({"retry": {"maxAttempts": 8, "initialBackoff": "10ms", "maxBackoff": "50ms"}}),
            api: StandInOptions {
                faults: Faults {
                    cut_every: Some(5),
                    stalled_every: Some(11),
                    ..Faults::default()
                },
                ..StandInOptions::default()
            },
        });
        scene.run().succeed();
        assert_eq!(scene.lines("parts").len(), 60);
        assert_eq!(scene.lines("errors"), [] as [Value; 0]);
        assert!(scene.record().calls.len() > 30);
        scene.assert_nothing_is_told(&["run.log"]);
    }
}

#[test]
fn a_stream_may_last_longer_than_the_time_out_of_its_pieces() {
    let scene = Scene::new(SceneOptions {
        rows: 8,
        remote: json!({"rowsPerCall": 8, "stream": true, "timeout": "4s"}),
        api: StandInOptions {
            stream_pause_ms: 300,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let record = scene.record();
    assert_eq!(record.calls.len(), 1);
    assert!(record.took_ms() > 4_000, "{}", record.took_ms());
    assert_eq!(scene.lines("parts").len(), 8);
}
