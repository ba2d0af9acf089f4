//! Bad inputs as a whole job meets them: what can be answered is, the rest is reported.

use std::io::Write;

use millrace_protocol::row::RowErrorCode;

use crate::scene::{Scene, SceneOptions, jsonl, line_offsets};
use millrace_e2e::history::{Outcomes, assert_every_row_once, manifest, outcomes};

/// Runs a job over one JSON-lines file, cut into shards of `shard_bytes`, and gives the outcomes in
/// input order.
fn run_jsonl(input: Vec<u8>, shard_bytes: usize) -> Vec<Result<String, RowErrorCode>> {
    let offsets = line_offsets(&input);
    let scene = Scene::new(SceneOptions {
        input,
        settings: format!("  sharding:\n    targetBytes: {shard_bytes}\n"),
        ..SceneOptions::default()
    });
    scene.run().wait();
    let seen = outcomes(&scene.output());
    assert_every_row_once(&seen, &scene.uri("rows.jsonl"), &offsets);
    seen.into_values().collect()
}

fn codes(outcomes: &[Result<String, RowErrorCode>]) -> Vec<Option<RowErrorCode>> {
    outcomes
        .iter()
        .map(|outcome| outcome.as_ref().err().copied())
        .collect()
}

#[test]
fn an_empty_file_succeeds_with_no_rows() {
    let scene = Scene::new(SceneOptions::default());
    scene.run().succeed();
    let manifest = manifest(&scene.output());
    assert!(manifest.complete);
    assert_eq!(manifest.totals.rows.total(), 0);
}

#[test]
fn bad_bytes_bad_json_and_deep_json_are_row_errors() {
    let mut input = Vec::new();
    input.extend(b"{\"id\":\"a\",\"text\":\"fine\"}\n");
    input.extend(b"{\"id\":\"b\",\"text\":\"\xff\xfe\"}\n");
    input.extend(b"{\"id\":\"c\",\"text\":\n");
    input.extend("[".repeat(250_000).as_bytes());
    input.extend(
        b"\n{\"id\":\"e\"}\n{\"id\":\"f\",\"text\":\"\"}\n{\"id\":\"g\",\"text\":\"last\"}",
    );
    let outcomes = run_jsonl(input, 1024);
    use RowErrorCode::*;
    let expected = [
        None,
        Some(InvalidUtf8),
        Some(InvalidJson),
        Some(InvalidJson),
        Some(MissingField),
        Some(EmptyText),
        None,
    ];
    assert_eq!(codes(&outcomes), expected);
}

#[test]
fn a_row_far_over_the_limit_is_a_row_error() {
    let mut input = b"{\"id\":\"a\",\"text\":\"fine\"}\n{\"id\":\"b\",\"text\":\"".to_vec();
    input.resize(input.len() + (64 << 20), b'x');
    input.extend(b"\"}\n{\"id\":\"c\",\"text\":\"fine\"}\n");
    assert_eq!(
        codes(&run_jsonl(input, 8 << 20)),
        [None, Some(RowErrorCode::RowTooLong), None]
    );
}

#[test]
fn rows_with_one_id_are_each_answered() {
    let input = b"{\"id\":\"a\",\"text\":\"one\"}\n{\"id\":\"a\",\"text\":\"two\"}\n";
    let outcomes = run_jsonl(input.to_vec(), 1024);
    assert!(outcomes.iter().all(Result::is_ok));
    assert_ne!(outcomes[0], outcomes[1]);
}

/// A gzip file that ends in the middle.
fn truncated_gzip() -> Vec<u8> {
    let whole = gzip(&jsonl(5_000, 0));
    whole[..whole.len() / 2].to_vec()
}

/// Compresses with the gzip program: the reader is held against another's writer.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = std::process::Command::new("gzip")
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("gzip is on every machine");
    let mut stdin = gzip.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = gzip.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_gzip_file_is_read_whole() {
    let plain = jsonl(500, 7);
    let scene = Scene::new(SceneOptions {
        input_name: "rows.jsonl.gz",
        input: gzip(&plain),
        ..SceneOptions::default()
    });
    scene.run().wait();
    let offsets = line_offsets(&plain);
    assert_every_row_once(
        &outcomes(&scene.output()),
        &scene.uri("rows.jsonl.gz"),
        &offsets,
    );
}

#[test]
fn a_compression_bomb_is_a_row_error_and_the_rows_around_it_are_answered() {
    // A hundred kilobytes that become a hundred megabytes, on one line.
    let mut plain = b"{\"id\":\"a\",\"text\":\"fine\"}\n{\"id\":\"b\",\"text\":\"".to_vec();
    plain.resize(plain.len() + (100 << 20), b'0');
    plain.extend(b"\"}\n{\"id\":\"c\",\"text\":\"fine\"}\n");
    let bomb = gzip(&plain);
    assert!(bomb.len() < 200 << 10, "{} bytes", bomb.len());
    let scene = Scene::new(SceneOptions {
        input_name: "rows.jsonl.gz",
        input: bomb,
        ..SceneOptions::default()
    });
    let mut run = scene.run();
    let mut most_kib = 0;
    while run.ended().is_none() {
        most_kib = most_kib.max(high_water_kib(run.pid()));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    run.succeed();
    assert!(most_kib < 100 << 10, "it took {most_kib} KiB");
    let seen: Vec<_> = outcomes(&scene.output()).into_values().collect();
    assert_eq!(codes(&seen), [None, Some(RowErrorCode::RowTooLong), None]);
}

/// The most memory that a process held so far, as the kernel keeps it.
fn high_water_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[test]
fn shards_that_begin_inside_lines_ends_and_characters_answer_every_row_once() {
    // Three bytes a character, two a line end, none at the end of the file: a cut at every kilobyte
    // falls on each of them somewhere.
    let lines: Vec<String> = (0..400)
        .map(|row| {
            format!(
                "{{\"id\":\"{row}\",\"text\":\"{}\"}}",
                "水車".repeat(1 + row % 37)
            )
        })
        .collect();
    let outcomes = run_jsonl(lines.join("\r\n").into_bytes(), 1024);
    assert_eq!(outcomes.len(), 400);
    assert!(outcomes.iter().all(Result::is_ok));
}

#[test]
fn a_truncated_gzip_file_fails_its_shard_once_with_the_reason() {
    let scene = Scene::new(SceneOptions {
        input_name: "rows.jsonl.gz",
        input: truncated_gzip(),
        ..SceneOptions::default()
    });
    let status = scene.run().wait();
    assert!(!status.success());
    let manifest = manifest(&scene.output());
    assert!(!manifest.complete);
    assert_eq!(manifest.failed_shards.len(), 1);
    let error = &manifest.failed_shards[0].error;
    assert!(
        error.contains("truncated") || error.contains("ends"),
        "{error}"
    );
}

#[test]
fn an_input_that_changed_since_the_plan_is_refused() {
    let scene = Scene::new(SceneOptions {
        input: jsonl(3_000, 0),
        settings: "  sharding:\n    targetBytes: 8192\n".to_owned(),
        // Work for longer than the change may take; what is left then costs no time.
        fake_backend: "micros-per-token=300".to_owned(),
        ..SceneOptions::default()
    });
    let mut run = scene.run();
    scene.wait_for_commits(1);
    std::fs::write(scene.path("rows.jsonl"), jsonl(3_001, 0)).unwrap();
    assert!(!run.wait().success());
    let manifest = manifest(&scene.output());
    assert!(!manifest.complete);
    assert!(
        manifest
            .failed_shards
            .iter()
            .all(|failed| failed.error.contains("changed"))
    );
    assert!(
        !manifest.parts.is_empty(),
        "what was committed before stays"
    );
}

#[test]
fn csv_cells_are_preserved_byte_for_byte() {
    let input = b"id,text,formula\r\n1,\"two\r\nlines, one cell\",=1+1\r\n2,plain,\"=cmd|' /C'!A0\"\r\n3,short\r\n";
    let scene = Scene::new(SceneOptions {
        input_name: "rows.csv",
        input: input.to_vec(),
        output_settings: "    join: [formula]\n",
        ..SceneOptions::default()
    });
    scene.run().wait();
    let seen: Outcomes = outcomes(&scene.output());
    let codes: Vec<_> = seen
        .values()
        .map(|outcome| outcome.as_ref().err().copied())
        .collect();
    assert_eq!(codes, [None, None, Some(RowErrorCode::InvalidCsv)]);
    let manifest = manifest(&scene.output());
    let part = manifest.parts[0].commit.part.clone().unwrap();
    let part = std::fs::read_to_string(scene.output().join(part)).unwrap();
    assert!(part.contains(r#""input":{"formula":"=1+1"}"#), "{part}");
    assert!(
        part.contains(r#""input":{"formula":"=cmd|' /C'!A0"}"#),
        "{part}"
    );
}
