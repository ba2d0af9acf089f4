//! Runs that run failed rows again, jobs that are given up, and rows that the manifest itself holds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::TryStreamExt;
use millrace_protocol::tally::Rows;
use serde_json::{Value, json};

use super::*;
use crate::store::StoreOptions;
use crate::work::testing::{self, FakeServer};
use crate::{output, plan};

/// A server that fails on texts with "bad" in them until it is well, and a folder for jobs.
struct Scene {
    folder: tempfile::TempDir,
    stores: Stores,
    server: FakeServer,
    is_well: Arc<AtomicBool>,
}

impl Scene {
    fn new() -> Self {
        let is_well = Arc::new(AtomicBool::new(false));
        let server = FakeServer::unwell_until(is_well.clone());
        Self {
            folder: tempfile::tempdir().unwrap(),
            stores: Stores::new(StoreOptions::default()),
            server,
            is_well,
        }
    }

    /// A job over 90 rows in shards of about a kilobyte, every third of which is bad.
    fn job(&self, more: Value) -> CheckedJob {
        let lines = (0..90).map(|row| {
            let word = if row % 3 == 0 { "bad" } else { "good" };
            json!({"id": row, "text": format!("{word} {row} {}", "x".repeat(row % 40))})
        });
        let lines: String = lines.map(|line| line.to_string() + "\n").collect();
        std::fs::write(self.folder.path().join("all.jsonl"), lines).unwrap();
        let mut spec = json!({
            "input": {"uris": ["all.jsonl"], "idField": "id"},
            "sharding": {"targetBytes": 1024},
            "retry": {"maxAttempts": 1},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        testing::job(self.folder.path(), &[], spec)
    }

    fn options(&self) -> WorkOptions {
        testing::options(&self.server)
    }

    async fn drive(&self, job: &CheckedJob) -> Manifest {
        testing::drive(&self.stores, job, &self.options()).await
    }

    /// How each position of the output ends, and fails if one ends twice.
    async fn ends(&self, job: &CheckedJob) -> BTreeMap<String, &'static str> {
        let location = self.stores.open(&job.output.uri).unwrap();
        let visible = output::visible(&location).await.unwrap();
        let results = output::results(&location, &visible.parts);
        let results: Vec<String> = results.try_collect().await.unwrap();
        let errors = output::errors(&location, &visible.parts);
        let errors: Vec<_> = errors.try_collect().await.unwrap();
        let results = results.iter().map(|line| {
            let line: millrace_protocol::result::ResultLine = serde_json::from_str(line).unwrap();
            (line.position.to_string(), "result")
        });
        let errors = errors
            .iter()
            .map(|line| (line.position.to_string(), "error"));
        let mut ends = BTreeMap::new();
        for (position, end) in results.chain(errors) {
            let twice = ends.insert(position.clone(), end);
            assert_eq!(twice, None, "{position} ends twice");
        }
        ends
    }
}

#[tokio::test]
async fn rows_that_a_filter_leaves_out_are_skipped_and_counted() {
    let scene = Scene::new();
    let filter = json!({"expression": "id % 9 == 0 or 'good' in text", "minChars": 9});
    let job = scene.job(json!({
        "input": {"uris": ["all.jsonl"], "idField": "id", "filter": filter},
    }));
    let manifest = scene.drive(&job).await;
    // Of the 30 bad rows ten have a multiple of nine; `good 1` to `good 40` are short.
    let text = |row: usize| {
        let word = if row.is_multiple_of(3) { "bad" } else { "good" };
        format!("{word} {row} {}", "x".repeat(row % 40))
    };
    let is_long = |row: &usize| text(*row).trim().chars().count() >= 9;
    let good = (0..90).filter(|row| row % 3 != 0).filter(is_long).count() as u64;
    let bad = (0..90_usize)
        .filter(|row: &usize| row.is_multiple_of(9))
        .filter(is_long)
        .count() as u64;
    let Rows {
        succeeded,
        failed,
        skipped,
    } = manifest.totals.rows;
    assert_eq!((succeeded, failed), (good, bad));
    assert_eq!(succeeded + failed + skipped, 90);
    assert!(
        good < 60 && bad < 10,
        "each part of the filter left some out"
    );
    assert_eq!(scene.ends(&job).await.len() as u64, good + bad);
    // The rows that failed are run again, and no others.
    scene.is_well.store(true, Ordering::Relaxed);
    let mut again = job.clone();
    again.run += 1;
    let manifest = scene.drive(&again).await;
    let rows = manifest.totals.rows;
    assert_eq!((rows.succeeded, rows.failed), (good + bad, 0));
}

fn count(ends: &BTreeMap<String, &'static str>, end: &str) -> usize {
    ends.values().filter(|found| **found == end).count()
}

#[tokio::test]
async fn failed_rows_are_run_again_alone_and_every_row_still_ends_once() {
    let scene = Scene::new();
    let job = scene.job(json!({"rerunFailed": 2}));
    let first = scene.drive(&job.at_run(1)).await;
    assert_eq!(
        (first.totals.rows.succeeded, first.totals.rows.failed),
        (60, 30)
    );
    // Unwell still: the rows fail once more.
    let second = scene.drive(&job.at_run(2)).await;
    assert_eq!(
        (second.totals.rows.succeeded, second.totals.rows.failed),
        (60, 30)
    );
    let ends = scene.ends(&job).await;
    assert_eq!((count(&ends, "result"), count(&ends, "error")), (60, 30));
    let asked = scene.server.asked().len();
    scene.is_well.store(true, Ordering::Relaxed);
    let third = scene.drive(&job).await;
    assert_eq!((third.run, third.complete), (3, true));
    assert_eq!(
        (third.totals.rows.succeeded, third.totals.rows.failed),
        (90, 0)
    );
    let ends = scene.ends(&job).await;
    assert_eq!((count(&ends, "result"), count(&ends, "error")), (90, 0));
    let asked: Vec<_> = scene.server.asked().split_off(asked);
    let texts: Vec<&String> = asked.iter().flat_map(|request| &request.texts).collect();
    assert_eq!(texts.len(), 30);
    assert!(texts.iter().all(|text| text.contains("bad")), "{texts:?}");
    assert!(matches!(
        find(&scene.stores, &job).await.unwrap(),
        Found::Finished(_)
    ));
}

#[tokio::test]
async fn a_later_run_that_was_begun_goes_on_before_an_earlier_one() {
    let scene = Scene::new();
    let job = scene.job(json!({}));
    scene.drive(&job).await;
    let is_finished = async || {
        let found = find(&scene.stores, &job).await.unwrap();
        matches!(found, Found::Finished(_))
    };
    assert!(is_finished().await);
    let again = job.at_run(2);
    prepare(&scene.stores, &again).await.unwrap();
    assert_eq!(find(&scene.stores, &job).await.unwrap(), Found::Next(2));
    scene.is_well.store(true, Ordering::Relaxed);
    let manifest = scene.drive(&again).await;
    assert_eq!(manifest.totals.rows.failed, 0);
    assert!(is_finished().await);
}

#[tokio::test]
async fn a_run_that_is_finished_twice_counts_the_same() {
    let scene = Scene::new();
    let job = scene.job(json!({"rerunFailed": 1}));
    scene.drive(&job.at_run(1)).await;
    scene.is_well.store(true, Ordering::Relaxed);
    let once = scene.drive(&job).await;
    let mut twice = scene.drive(&job).await;
    twice.finished_at.clone_from(&once.finished_at);
    assert_eq!(once, twice);
}

#[tokio::test]
async fn failed_rows_cannot_be_run_again_before_their_run_is_finished() {
    let scene = Scene::new();
    let job = scene.job(json!({"rerunFailed": 1}));
    let refused = prepare(&scene.stores, &job).await.unwrap_err();
    assert!(
        matches!(
            refused,
            RunError::Plan(plan::PlanError::NoEarlierRun { run: 2, .. })
        ),
        "{refused:?}"
    );
    assert_eq!(find(&scene.stores, &job).await.unwrap(), Found::Next(1));
}

#[tokio::test]
async fn a_job_that_is_given_up_names_what_is_not_done_and_a_rerun_does_it() {
    let scene = Scene::new();
    let job = scene.job(json!({"rerunFailed": 1}));
    let first = job.at_run(1);
    let prepared = prepare(&scene.stores, &first).await.unwrap();
    let shards = prepared.plan.shards.len() as u32;
    let options = scene.options();
    // One shard alone is worked off.
    options.leases.push(&[1]).await.unwrap();
    work(&scene.stores, &first, &prepared, &options)
        .await
        .unwrap();
    let ended = conclude(
        &first,
        &prepared,
        options.leases.as_ref(),
        Some("cancelled"),
        None,
    );
    let Finish::Finished(manifest) = ended.await.unwrap() else {
        panic!("it is given up");
    };
    assert!(!manifest.complete);
    assert_eq!(manifest.parts.len(), 1);
    let failed: Vec<u32> = manifest.failed_shards.iter().map(|it| it.shard).collect();
    let expected: Vec<u32> = (0..shards).filter(|shard| *shard != 1).collect();
    assert_eq!(failed, expected);
    assert!(
        manifest
            .failed_shards
            .iter()
            .all(|it| it.error == "cancelled")
    );
    scene.is_well.store(true, Ordering::Relaxed);
    let manifest = scene.drive(&job).await;
    assert!(manifest.complete);
    assert_eq!(manifest.totals.rows.succeeded, 90);
    assert_eq!(count(&scene.ends(&job).await, "result"), 90);
}

#[tokio::test]
async fn rows_that_the_manifest_holds_are_a_dataset_like_any_other() {
    let scene = Scene::new();
    let input = json!({"inline": ["one", "two\n\"lines\"", "bad three"], "idField": "id"});
    let job = testing::job(scene.folder.path(), &[], json!({"input": input}));
    let manifest = scene.drive(&job).await;
    assert_eq!(
        (manifest.totals.rows.succeeded, manifest.totals.rows.failed),
        (2, 1)
    );
    let asked = scene.server.asked();
    let texts: Vec<&String> = asked.iter().flat_map(|request| &request.texts).collect();
    assert!(texts.contains(&&"two\n\"lines\"".to_owned()), "{texts:?}");
    let other = json!({"inline": ["one", "two"], "idField": "id"});
    let other = testing::job(scene.folder.path(), &[], json!({"input": other}));
    let refused = prepare(&scene.stores, &other).await.unwrap_err();
    assert!(matches!(
        refused,
        RunError::Plan(plan::PlanError::OtherSpec { .. })
    ));
}
