//! Long documents, asked about in chunks: one line for each, whatever happens to a chunk or to the run.

use millrace_e2e::history::{assert_every_row_once, outcomes};
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions, line_offsets};

/// The fake has one token for each word.
const MAX_TOKENS: usize = 20;
const OVERLAP: usize = 5;
/// A word that the fake answers with NaN.
const NAN_WORD: &str = "nan";
/// Which document has it.
const BAD_DOCUMENT: usize = 7;

/// Documents of one to two hundred words, some of them of several bytes a letter.
fn documents() -> Vec<String> {
    let words = ["mühle", "wheel", "水車", "grain", "stone."];
    let document = |index: usize| {
        let count = 1 + index * 37 % 200;
        let words = (0..count).map(|word| match (index, word) {
            (BAD_DOCUMENT, 30) => NAN_WORD.to_owned(),
            _ => format!("{}{word}", words[(index + word) % words.len()]),
        });
        words.collect::<Vec<_>>().join(" ")
    };
    (0..40).map(document).collect()
}

fn jsonl(texts: &[String]) -> Vec<u8> {
    let lines = texts.iter().enumerate();
    let lines =
        lines.map(|(id, text)| format!("{}\n", json!({"id": id.to_string(), "text": text})));
    lines.collect::<String>().into_bytes()
}

/// The lines of a folder of the output, by id.
fn lines(scene: &Scene, folder: &str) -> Vec<(usize, Value)> {
    let mut lines = Vec::new();
    for file in std::fs::read_dir(scene.output().join(folder)).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            lines.push((line["id"].as_str().unwrap().parse().unwrap(), line));
        }
    }
    lines.sort_by_key(|(id, _)| *id);
    lines
}

/// The texts and the results of a document's chunks.
fn chunks(text: &str, line: &Value) -> Vec<(String, Value)> {
    let characters: Vec<char> = text.chars().collect();
    let number = |chunk: &Value, field: &str| chunk[field].as_u64().unwrap() as usize;
    let chunks = line["result"]["embed"].as_array().unwrap().iter();
    let chunks = chunks.map(|chunk| {
        let range = number(chunk, "start")..number(chunk, "end");
        (characters[range].iter().collect(), chunk["result"].clone())
    });
    chunks.collect()
}

/// The chunks of a text: each has so many words, and begins with the last ones of the one before it.
fn expected(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split(' ').collect();
    let last = words.len().saturating_sub(MAX_TOKENS);
    let starts = (0..).step_by(MAX_TOKENS - OVERLAP);
    let starts = starts.take_while(|from| *from < last + MAX_TOKENS - OVERLAP);
    let piece = |from: usize| words[from..words.len().min(from + MAX_TOKENS)].join(" ");
    starts.map(piece).collect()
}

#[test]
fn a_long_document_has_one_line_with_its_chunks_in_order_though_the_run_was_killed() {
    let texts = documents();
    let input = jsonl(&texts);
    let scene = Scene::new(SceneOptions {
        input: input.clone(),
        input_settings: "    idField: id\n    chunking: {maxTokens: 20, overlap: 5}\n",
        settings: "  sharding:\n    targetBytes: 4096\n".to_owned(),
        fake_backend: format!("micros-per-token=100,nan-on={NAN_WORD}"),
        ..SceneOptions::default()
    });
    let mut run = scene.run();
    scene.wait_for_commits(1);
    run.kill();
    scene.run().succeed();
    let offsets = line_offsets(&input);
    assert_every_row_once(
        &outcomes(&scene.output()),
        &scene.uri("rows.jsonl"),
        &offsets,
    );
    let errors = lines(&scene, "errors");
    let [(BAD_DOCUMENT, error)] = errors.as_slice() else {
        panic!("{errors:?}");
    };
    assert_eq!(error["error"]["code"], "not_finite");
    let message = error["error"]["message"].as_str().unwrap();
    // The third chunk has the word as well, in its overlap.
    assert!(message.starts_with("chunk 2 of "), "{message}");

    let mut pieces = Vec::new();
    for (id, line) in lines(&scene, "parts") {
        let found = chunks(&texts[id], &line);
        let expected = expected(&texts[id]);
        let cut: Vec<String> = found.iter().map(|(piece, _)| piece.clone()).collect();
        assert_eq!(cut, expected, "document {id}");
        pieces.extend(found);
    }
    assert!(pieces.len() > 150, "{} chunks", pieces.len());

    // Each chunk is answered as a row of its text is.
    let rows: Vec<String> = pieces.iter().map(|(piece, _)| piece.clone()).collect();
    let scene = Scene::new(SceneOptions {
        input: jsonl(&rows),
        ..SceneOptions::default()
    });
    scene.run().succeed();
    for (row, line) in lines(&scene, "parts") {
        assert_eq!(line["result"]["embed"], pieces[row].1, "{}", rows[row]);
    }
}

#[test]
fn chunks_are_joined_and_texts_are_normalized_before_they_are_cut() {
    let texts = [
        "The  Mill\u{a0}stands! It grinds!",
        "ONE! two! three! four!",
        "It grinds!",
    ];
    let scene = Scene::new(SceneOptions {
        input: jsonl(&texts.map(str::to_owned)),
        input_settings: "    idField: id\n    normalize: {unicode: NFKC, whitespace: Collapse, lowercase: true}\n    \
             chunking: {by: Sentences, maxSentences: 1, maxChunks: 3, join: Mean}\n",
        output_settings: "    join: [text]\n",
        ..SceneOptions::default()
    });
    scene.run().succeed();
    let errors = lines(&scene, "errors");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        (errors[0].0, &errors[0].1["error"]["code"]),
        (1, &json!("too_many_chunks"))
    );
    let parts = lines(&scene, "parts");
    let vector = |index: usize| -> Vec<f64> {
        let values = parts[index].1["result"]["embed"].as_array().unwrap();
        values.iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let (both, second) = (vector(0), vector(1));
    let length: f64 = both.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
    assert_ne!(both, second);
    assert_eq!(
        parts[0].1["input"]["text"], texts[0],
        "as it is in the input"
    );
}
