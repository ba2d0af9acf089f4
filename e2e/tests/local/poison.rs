//! Rows that harm the server: found, quarantined with a reason, and everything else is done.

use millrace_protocol::row::{Place, RowErrorCode};

use crate::scene::{Scene, SceneOptions, jsonl, line_offsets};
use millrace_e2e::history::{assert_every_row_once, outcomes};

/// Runs a job in which the rows at `indices` hold `word`; returns the code each of them ended with
/// after checking that all other rows succeeded, and that neither the log nor any error quotes them.
fn codes_of(word: &str, fake_backend: &str, indices: &[usize]) -> Vec<RowErrorCode> {
    let clean = String::from_utf8(jsonl(600, 0)).unwrap();
    let poisoned = clean
        .lines()
        .enumerate()
        .map(|(index, line)| match indices.contains(&index) {
            true => line.replace("\"text\":\"", &format!("\"text\":\"{word} ")) + "\n",
            false => format!("{line}\n"),
        });
    let input = poisoned.collect::<String>().into_bytes();
    let offsets = line_offsets(&input);
    let scene = Scene::new(SceneOptions {
        input,
        fake_backend: fake_backend.to_owned(),
        settings: "  retry:\n    initialBackoff: 10ms\n".to_owned(),
        ..SceneOptions::default()
    });
    let mut run = scene.run();
    run.wait();
    let log = run.log();
    assert!(!log.contains(word), "a row is quoted: {log}");
    for file in std::fs::read_dir(scene.path("out/errors")).unwrap() {
        let errors = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!errors.contains(word), "a row is quoted: {errors}");
    }
    let seen = outcomes(&scene.output());
    let uri = scene.uri("rows.jsonl");
    assert_every_row_once(&seen, &uri, &offsets);
    let failed = seen.values().filter(|outcome| outcome.is_err()).count();
    assert_eq!(failed, indices.len(), "only the poisoned rows fail");
    let code = |&index: &usize| {
        let key = (
            uri.clone(),
            Place::Offset {
                offset: offsets[index],
            },
        );
        seen[&key].clone().unwrap_err()
    };
    indices.iter().map(code).collect()
}

#[test]
fn a_row_that_kills_the_server_is_found_and_quarantined() {
    let codes = codes_of("hemlock", "crash-on=hemlock", &[17, 431]);
    assert_eq!(codes, [RowErrorCode::ServerCrashed; 2]);
}

#[test]
fn a_row_that_a_panic_quotes_fails_alone() {
    let codes = codes_of("hemlock", "tokenizer-panic-on=hemlock", &[3, 400]);
    assert_eq!(codes, [RowErrorCode::TokenizeFailed; 2]);
}

#[test]
fn a_row_that_the_model_fails_on_fails_alone() {
    let codes = codes_of("hemlock", "fail-on=hemlock", &[0, 1, 599]);
    assert_eq!(codes, [RowErrorCode::ModelFailed; 3]);
}

#[test]
fn a_row_with_nan_fails_alone() {
    let codes = codes_of("hemlock", "nan-on=hemlock", &[5, 300]);
    assert_eq!(codes, [RowErrorCode::NotFinite; 2]);
}

#[test]
fn a_row_that_loses_the_device_is_found_and_no_other_row_pays_for_it() {
    let codes = codes_of("hemlock", "device-lost-on=hemlock", &[17, 431]);
    assert_eq!(codes, [RowErrorCode::ServerCrashed; 2]);
}
