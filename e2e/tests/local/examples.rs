//! The examples that need nothing but models run as they are, and their answers make sense. The models
//! are stand-ins that find words, so that what must be answered is known.

use std::collections::BTreeMap;
use std::process::Command;

use millrace_e2e::files::{copy, make_models, repository};
use millrace_e2e::process::{Process, binary};
use serde_json::Value;

/// Runs an example, and returns the best label of each step for each id.
fn run(example: &str) -> BTreeMap<String, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let from = repository().join("examples").join(example);
    let place = folder.path().join(example);
    // Without models or output that somebody made there. What is for clusters must not be taken for a manifest.
    std::fs::create_dir(&place).unwrap();
    for file in ["job.yaml", "service.yaml", "texts.jsonl", "Kustomization"] {
        copy(&from.join(file), &place.join(file));
    }
    make_models(folder.path());
    let mut command = Command::new(binary("millrace"));
    command.arg("run").arg("-f").arg(&place);
    Process::start(command, folder.path().join("run.log")).succeed();

    let manifest = std::fs::read(place.join("output/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["totals"]["rows"]["failed"], 0);
    let mut labels = BTreeMap::new();
    for part in std::fs::read_dir(place.join("output/parts")).unwrap() {
        for line in std::fs::read_to_string(part.unwrap().path())
            .unwrap()
            .lines()
        {
            let row: Value = serde_json::from_str(line).unwrap();
            let steps = row["result"].as_object().unwrap().values();
            let best = steps.map(|step| step[0]["label"].as_str().unwrap().to_owned());
            labels.insert(row["id"].as_str().unwrap().to_owned(), best.collect());
        }
    }
    labels
}

#[test]
fn each_text_in_four_languages_gets_the_labels_of_both_models() {
    let labels = run("analysis");
    assert_eq!(labels.len(), 8);
    for (id, expected) in [
        ("en-1", ["positive", "clean"]),
        ("en-2", ["negative", "toxic"]),
        ("de-2", ["negative", "toxic"]),
        ("fr-1", ["positive", "clean"]),
        ("es-2", ["negative", "toxic"]),
    ] {
        assert_eq!(labels[id], expected, "{id}");
    }
}

#[test]
fn each_note_gets_the_part_of_the_body_that_it_names() {
    let labels = run("symptoms");
    assert_eq!(labels.len(), 10);
    for (id, expected) in [
        ("note-1", "respiratory"),
        ("note-2", "skin"),
        ("note-3", "digestive"),
        ("note-4", "cardiac"),
        ("note-5", "neurological"),
    ] {
        assert_eq!(labels[id], [expected], "{id}");
    }
}
