//! What is made of rows before they are asked.

use serde_json::{Value, json};

use crate::{job, problems, refused, with};

#[test]
fn a_text_is_normalized_in_ways_that_there_are() {
    let to = |normalize: Value| with(job(), "/spec/input/normalize", normalize);
    for fine in [
        json!({"unicode": "NFKC", "whitespace": "Collapse", "lowercase": true}),
        json!({"unicode": "NFC"}),
        json!({"whitespace": "Trim"}),
    ] {
        assert!(problems(&to(fine.clone())).is_empty(), "{fine}");
    }
    let empty = "spec.input.normalize: an empty normalize means nothing";
    refused(&to(json!({})), empty);
    refused(&to(json!({"lowercase": false})), empty);
    refused(
        &to(json!({"unicode": "NFD"})),
        "spec.input.normalize.unicode: ",
    );
    refused(
        &to(json!({"lowercase": true, "trim": true})),
        "spec.input.normalize.trim: ",
    );
}

#[test]
fn lines_of_text_have_no_ids() {
    let of = |uri: &str| {
        let job = with(job(), "/spec/input/uris", json!(["a.jsonl", uri]));
        with(job, "/spec/input/idField", json!("id"))
    };
    for uri in ["b.txt", "s3://a/b.TXT.gz"] {
        refused(&of(uri), "spec.input: idField means nothing for .txt files");
    }
    assert!(problems(&of("b.txt.jsonl")).is_empty());
    let jsonl = with(of("b.txt"), "/spec/input/format", json!("Jsonl"));
    assert!(problems(&jsonl).is_empty());
}

#[test]
fn chunks_overlap_by_half_at_most_and_their_bounds_are_sane() {
    let to = |chunking: Value| with(job(), "/spec/input/chunking", chunking);
    for fine in [
        json!({}),
        json!({"maxTokens": 256, "overlap": 128}),
        json!({"by": "Sentences", "maxSentences": 3, "overlap": 32, "join": "Mean"}),
    ] {
        assert!(problems(&to(fine.clone())).is_empty(), "{fine}");
    }
    let of = |field: &str| format!("spec.input.chunking{field}: ");
    for (bad, expected) in [
        (
            json!({"maxTokens": 20, "overlap": 11}),
            of("") + "overlap must be at most half",
        ),
        (
            json!({"maxSentences": 3}),
            of("") + "maxSentences means nothing for chunks by Tokens",
        ),
        (json!({"maxTokens": 15}), of(".maxTokens")),
        (json!({"maxChunks": 0}), of(".maxChunks")),
        (json!({"overlap": -1}), of(".overlap")),
        (json!({"join": "Min"}), of(".join")),
        (json!({"by": "Words"}), of(".by")),
    ] {
        refused(&to(bad), &expected);
    }
}

#[test]
fn a_step_joins_chunks_only_where_there_are_chunks() {
    let steps = json!([{"name": "a", "model": "a", "join": "Max"}]);
    let job = with(job(), "/spec/steps", steps);
    refused(
        &job,
        "spec: a step's join means nothing without input.chunking",
    );
    let job = with(job, "/spec/input/chunking", json!({}));
    assert!(problems(&job).is_empty());
}
