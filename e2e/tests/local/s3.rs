//! A whole job whose output is on a real S3 server.

use std::path::Path;

use crate::scene::{Scene, SceneOptions, jsonl, line_offsets};
use millrace_e2e::history::{assert_every_row_once, manifest, outcomes, outcomes_so_far};
use millrace_e2e::process::{PATIENCE, until};
use millrace_e2e::s3_proxy::{Fault, S3Proxy};
use millrace_e2e::s3_server::{BUCKET, S3Server};

const ROWS: usize = 1_500;
const BAD_EVERY: usize = 97;

/// A job over the rows of a bucket, in shards of so many bytes, whose results are merged there.
fn merging(shard_bytes: u32, variables: Vec<(&'static str, String)>) -> SceneOptions {
    SceneOptions {
        input_name: "s3://bucket/rows.jsonl",
        output: "s3://bucket/out",
        output_settings: "    merge: true\n",
        settings: format!("  sharding:\n    targetBytes: {shard_bytes}\n"),
        variables,
        ..SceneOptions::default()
    }
}

#[test]
fn a_killed_run_on_s3_goes_on_and_merges_every_row_once_in_input_order() {
    let s3 = S3Server::start();
    let input = jsonl(ROWS, BAD_EVERY);
    std::fs::write(s3.bucket_folder().join("rows.jsonl"), &input).unwrap();
    let scene = Scene::new(SceneOptions {
        fake_backend: "micros-per-token=60".to_owned(),
        ..merging(16_384, s3.variables())
    });
    let output = s3.bucket_folder().join("out");
    let mut run = scene.run();
    until(PATIENCE, || {
        (!outcomes_so_far(&output).is_empty()).then_some(())
    })
    .unwrap_or_else(|| panic!("no commit:\n{}", run.log()));
    run.kill();
    let before = outcomes_so_far(&output);
    assert!(before.len() < ROWS, "it was killed after its end");

    scene.run().succeed();
    let seen = outcomes(&output);
    let file = format!("s3://{BUCKET}/rows.jsonl");
    assert_every_row_once(&seen, &file, &line_offsets(&input));
    assert!(
        before
            .iter()
            .all(|(at, outcome)| seen.get(at) == Some(outcome)),
        "a committed row changed"
    );
    assert_merged(&output);
}

#[test]
fn writes_that_fail_before_or_after_they_land_cost_no_row_and_double_none() {
    let s3 = S3Server::start();
    let proxy = S3Proxy::start(&s3);
    let input = jsonl(ROWS, BAD_EVERY);
    std::fs::write(s3.bucket_folder().join("rows.jsonl"), &input).unwrap();
    let scene = Scene::new(merging(8_192, proxy.variables(&s3)));
    scene.run().succeed();
    let output = s3.bucket_folder().join("out");
    let file = format!("s3://{BUCKET}/rows.jsonl");
    assert_every_row_once(&outcomes(&output), &file, &line_offsets(&input));
    assert_merged(&output);
    for folder in ["/out/parts", "/out/errors", "/runs/0001/commits"] {
        let struck = proxy.struck(folder);
        let all = [Fault::LostReply, Fault::FailedAfter, Fault::FailedBefore];
        assert_eq!(struck, all, "{folder}");
    }
    // An attempt knows its own commit again: what it wrote is neither discarded nor written twice.
    let manifest = manifest(&output);
    let files = std::fs::read_dir(output.join("parts")).unwrap().count();
    assert_eq!(files, manifest.parts.len());
}

/// The merged file holds the visible results, end to end in input order.
fn assert_merged(output: &Path) {
    let manifest = manifest(output);
    let parts = manifest
        .parts
        .iter()
        .filter_map(|live| live.commit.part.as_ref());
    let expected: Vec<u8> = parts
        .flat_map(|part| std::fs::read(output.join(part)).unwrap())
        .collect();
    let merged = manifest.merged.expect("the job asks for a merged file");
    let merged = std::fs::read(output.join(merged)).unwrap();
    assert!(merged == expected, "the merged file is not its parts");
    assert_eq!(
        merged.iter().filter(|&&byte| byte == b'\n').count() as u64,
        manifest.totals.rows.succeeded
    );
}
