//! Rows that are almost the same by the vectors of an earlier job, as whole jobs have it.

use std::collections::BTreeMap;

use millrace_e2e::history::{assert_every_row_once, manifest, outcomes};
use serde_json::Value;

use crate::scene::{Scene, SceneOptions, line_offsets};

/// Each fourth text is an earlier one with more white space, of which the model makes nothing.
fn input() -> Vec<u8> {
    let lines = (0..400).map(|row: usize| {
        let text = match row % 4 {
            3 => format!("the  {}th wheel of the mill", row / 4 * 2),
            _ => format!("the {}th wheel of the mill", row - row / 4),
        };
        format!("{{\"id\":\"{row}\",\"text\":\"{text}\"}}\n")
    });
    lines.collect::<String>().into_bytes()
}

#[test]
fn rows_whose_vectors_an_earlier_job_made_almost_the_same_are_asked_once() {
    let scene = Scene::new(SceneOptions {
        input: input(),
        settings: "  sharding:\n    targetBytes: 2048\n".to_owned(),
        fake_backend: "hidden-size=64".to_owned(),
        output: "vectors",
        output_settings: "    compression: Zstd\n",
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let job = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let near = |step: &str| {
        let near = format!("method: Embedding, from: vectors, step: {step}, threshold: 0.95");
        let job = job.replace("uri: vectors", "uri: out");
        std::fs::write(
            scene.path("job.yaml"),
            format!("{job}  dedup:\n    near: {{{near}}}\n"),
        )
        .unwrap();
        let mut run = scene.run();
        let status = run.wait();
        (status.success(), run.log())
    };
    let (succeeded, log) = near("other");
    assert!(!succeeded && log.contains("no vector"), "{log}");
    let (succeeded, log) = near("embed");
    assert!(succeeded, "{log}");
    let seen = outcomes(&scene.output());
    assert_every_row_once(&seen, &scene.uri("rows.jsonl"), &line_offsets(&input()));
    let dedup = manifest(&scene.output()).dedup.expect("the job says dedup");
    assert_eq!(dedup.duplicates, 100);
    let lines = lines(&scene);
    for row in (3..400).step_by(4) {
        let content = row / 4 * 2;
        let first = (0..400).find(|row| row % 4 != 3 && row - row / 4 == content);
        let (line, first) = (&lines[&row], &lines[&first.unwrap()]);
        assert_eq!(line["result"], first["result"], "{row}");
        let of = &line["duplicateOf"];
        assert_eq!(of["offset"], first["position"]["offset"], "{row}");
        assert_eq!(of["similarity"], 1.0, "{row}");
    }
}

/// The result lines of the output by id.
fn lines(scene: &Scene) -> BTreeMap<usize, Value> {
    let mut lines = BTreeMap::new();
    for part in manifest(&scene.output()).parts {
        let Some(part) = part.commit.part else {
            continue;
        };
        let part = std::fs::File::open(scene.output().join(part)).unwrap();
        let text = std::io::read_to_string(zstd::Decoder::new(part).unwrap()).unwrap();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let id = line["id"].as_str().unwrap().parse().unwrap();
            lines.insert(id, line);
        }
    }
    lines
}
