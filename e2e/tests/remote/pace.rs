//! Calls are as large as helps.

use millrace_stand_in::StandInOptions;
use serde_json::json;

use crate::scene::{Scene, SceneOptions};

#[test]
fn rows_grow_until_a_call_takes_half_of_its_time() {
    let scene = Scene::new(SceneOptions {
        rows: 300,
        remote: json!({
            "rowsPerCall": 1, "rowsPerCallMax": 200, "timeout": "4s",
            "limits": {"requestsPerMinute": 100_000, "concurrency": 5},
        }),
        api: StandInOptions {
            latency_per_row_ms: 100,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 300);
    let record = scene.record();
    let most = record.calls.iter().map(|call| call.rows.len()).max();
    // A busy machine makes calls slower and rows fewer, never more.
    assert!((3..=30).contains(&most.unwrap()), "{most:?}");
    assert_eq!(record.with_status(200).count(), record.calls.len());
}
