//! Runs that carry over what an earlier output answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use futures::TryStreamExt;
use millrace_protocol::manifest::LivePart;
use millrace_protocol::plan::Difference;
use serde_json::{Value, json};

use super::*;
use crate::output;
use crate::store::StoreOptions;
use crate::work::testing::{self, FakeServer, Say};

/// A folder of rows, and a server whose answer to a text is the text's length.
struct Scene {
    folder: tempfile::TempDir,
    stores: Stores,
    server: FakeServer,
}

impl Scene {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            stores: Stores::new(StoreOptions::default()),
            server: FakeServer::start(|_, _| Say::Vectors),
        }
    }

    /// Writes rows into a file: id and text. An empty text makes a row that cannot be answered.
    fn write(&self, rows: impl Iterator<Item = (String, String)>) {
        let lines = rows.map(|(id, text)| json!({"id": id, "text": text}).to_string() + "\n");
        let lines: String = lines.collect();
        std::fs::write(self.folder.path().join("all.jsonl"), lines).unwrap();
    }

    fn job(&self, output: &str, more: Value) -> CheckedJob {
        let mut spec = json!({
            "input": {"uris": ["all.jsonl"], "idField": "id"},
            "output": {"uri": output},
            "sharding": {"targetBytes": 1024},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        testing::job(self.folder.path(), &[], spec)
    }

    async fn drive(&self, job: &CheckedJob) -> Manifest {
        testing::drive(&self.stores, job, &testing::options(&self.server)).await
    }

    /// The result of each id.
    async fn results(&self, job: &CheckedJob) -> BTreeMap<String, Value> {
        let location = self.stores.open(&job.output.uri).unwrap();
        let visible = output::visible(&location).await.unwrap();
        let lines = output::results(&location, &visible.parts);
        let lines: Vec<String> = lines.try_collect().await.unwrap();
        let mut results = BTreeMap::new();
        for line in &lines {
            let line: Value = serde_json::from_str(line).unwrap();
            let id = line["id"].as_str().unwrap().to_owned();
            let twice = results.insert(id, line["result"].clone());
            assert!(twice.is_none(), "{line} is there twice");
        }
        results
    }

    /// What was asked, once for each time.
    fn asked(&self) -> Vec<String> {
        let asked = self.server.asked().into_iter();
        asked.flat_map(|request| request.texts).collect()
    }
}

fn text(row: usize) -> String {
    format!("row {row} {}", "x".repeat(row % 50))
}

fn rows(range: std::ops::Range<usize>) -> impl Iterator<Item = (String, String)> {
    range.map(|row| (format!("id-{row}"), text(row)))
}

#[tokio::test]
async fn only_new_and_changed_rows_are_asked_wherever_the_others_stand_now() {
    for compression in ["None", "Zstd"] {
        let scene = Scene::new();
        scene.write(rows(0..300));
        let output = |uri: &str| json!({"uri": uri, "compression": compression});
        let first = scene.job("first", json!({"output": output("first")}));
        scene.drive(&first).await;
        let before = scene.asked().len();
        assert_eq!(before, 300);
        // The other way round, ten gone, ten new, three changed, and one bad.
        let changed = |(id, text): (String, String)| match &*id {
            "id-7" | "id-77" | "id-177" => (id, text + " changed"),
            "id-8" => (id, String::new()),
            _ => (id, text),
        };
        let mut now: Vec<_> = rows(0..310).map(changed).collect();
        now.drain(200..210);
        now.reverse();
        scene.write(now.iter().cloned());
        let spec = json!({
            "output": output("second"),
            "incremental": {"from": "first"},
            "sharding": {"targetBytes": 3000},
        });
        let second = scene.job("second", spec);
        let draft = plan::draft(&scene.stores, &second).await.unwrap();
        let foretold = plan::count_unchanged(&scene.stores, &second, &draft).await;
        assert!(!scene.folder.path().join("second").exists());
        let manifest = scene.drive(&second).await;
        assert_eq!(foretold.unwrap(), manifest.difference);
        let asked: BTreeSet<String> = scene.asked().split_off(before).into_iter().collect();
        let mut expected: BTreeSet<String> = (300..310).map(text).collect();
        expected.extend([7, 77, 177].map(|row| text(row) + " changed"));
        assert_eq!(asked, expected);
        assert_eq!(scene.asked().len(), before + 13);
        let difference = manifest.difference.expect("it is incremental");
        let Difference {
            unchanged,
            fresh,
            gone,
            ..
        } = difference;
        assert_eq!((unchanged, fresh, gone), (286, 13, 14));
        let rows = manifest.totals.rows;
        assert_eq!((rows.succeeded, rows.failed), (299, 1));
        let results = scene.results(&second).await;
        for (id, text) in now.iter().filter(|(_, text)| !text.is_empty()) {
            assert_eq!(results[id]["embed"], json!([text.len() as f32]), "{id}");
        }
        assert_eq!(results.len(), 299);
        let left = scene.folder.path().join("second/_millrace/runs/0001");
        let is_empty = |name: &str| match std::fs::read_dir(left.join(name)) {
            Ok(mut files) => files.next().is_none(),
            Err(_) => true,
        };
        assert!(is_empty("carried"), "the lists are of use to nobody");
        assert!(!is_empty("ledger"), "the next job builds on the ledgers");
    }
}

#[tokio::test]
async fn an_incremental_output_is_what_the_next_one_builds_on() {
    let scene = Scene::new();
    scene.write(rows(0..50));
    scene.drive(&scene.job("a", json!({}))).await;
    let next = |from: &str| json!({"incremental": {"from": from}});
    scene.drive(&scene.job("b", next("a"))).await;
    assert_eq!(scene.asked().len(), 50);
    let c = scene.job("c", next("b"));
    scene.drive(&c).await;
    assert_eq!(scene.asked().len(), 50);
    assert_eq!(scene.results(&c).await.len(), 50);
}

#[tokio::test]
async fn another_parameter_makes_every_row_a_changed_one() {
    let scene = Scene::new();
    scene.write(rows(0..20));
    scene.drive(&scene.job("a", json!({}))).await;
    let spec = json!({
        "incremental": {"from": "a"},
        "steps": [{"name": "other", "model": "embed"}],
    });
    let b = scene.job("b", spec);
    let manifest = scene.drive(&b).await;
    assert_eq!(scene.asked().len(), 40);
    assert_eq!(manifest.difference, None);
    assert!(scene.results(&b).await["id-0"]["other"].is_array());
}

#[tokio::test]
async fn rows_that_failed_before_are_asked_again() {
    let scene = Scene::new();
    scene.write(rows(0..3).chain([("bad".to_owned(), String::new())]));
    scene.drive(&scene.job("a", json!({}))).await;
    scene.write(rows(0..3).chain([("bad".to_owned(), "good now".to_owned())]));
    let b = scene.job("b", json!({"incremental": {"from": "a"}}));
    scene.drive(&b).await;
    assert_eq!(scene.asked().len(), 4);
    assert_eq!(scene.results(&b).await["bad"]["embed"], json!([8.0]));
}

#[tokio::test]
async fn rows_that_a_filter_leaves_out_are_neither_asked_nor_carried_over() {
    let scene = Scene::new();
    scene.write(rows(0..60));
    let input = |expression: &str| {
        let filter = json!({"expression": expression});
        json!({"uris": ["all.jsonl"], "idField": "id", "filter": filter})
    };
    let first = json!({"input": input("id != 'id-3'")});
    scene.drive(&scene.job("a", first)).await;
    assert_eq!(scene.asked().len(), 59);
    let second = json!({"input": input("id != 'id-4'"), "incremental": {"from": "a"}});
    let b = scene.job("b", second);
    let manifest = scene.drive(&b).await;
    assert_eq!(scene.asked().split_off(59), [text(3)]);
    let Difference {
        unchanged,
        fresh,
        gone,
        ..
    } = manifest.difference.expect("it is incremental");
    assert_eq!((unchanged, fresh, gone), (58, 1, 1));
    assert_eq!(manifest.totals.rows.skipped, 1);
    assert!(!scene.results(&b).await.contains_key("id-4"));
}

#[tokio::test]
async fn one_file_that_cannot_be_read_fails_its_own_shard_alone() {
    let scene = Scene::new();
    scene.write(rows(0..60));
    scene.drive(&scene.job("a", json!({}))).await;
    std::fs::write(scene.folder.path().join("broken.jsonl.gz"), "no gzip").unwrap();
    let b = scene.job(
        "b",
        json!({
            "input": {"uris": ["all.jsonl", "broken.jsonl.gz"], "idField": "id"},
            "incremental": {"from": "a"},
        }),
    );
    let manifest = scene.drive(&b).await;
    assert_eq!(manifest.failed_shards.len(), 1);
    assert_eq!(scene.results(&b).await.len(), 60);
    assert_eq!(scene.asked().len(), 60, "nothing is asked again");
}

#[tokio::test]
async fn an_earlier_output_that_is_named_after_planning_is_refused() {
    let scene = Scene::new();
    scene.write(rows(0..3));
    scene.drive(&scene.job("a", json!({}))).await;
    prepare(&scene.stores, &scene.job("b", json!({})))
        .await
        .unwrap();
    let job = scene.job("b", json!({"incremental": {"from": "a"}}));
    let refused = prepare(&scene.stores, &job).await.unwrap_err();
    let said = millrace_telemetry::chain(&refused);
    assert!(said.contains("naming nothing"), "{said}");
}

#[tokio::test]
async fn an_earlier_output_that_cannot_be_used_is_named_with_what_to_do() {
    let scene = Scene::new();
    scene.write(rows(0..3));
    let refused = async |output: &str, from: &str| {
        let job = scene.job(output, json!({"incremental": {"from": from}}));
        let refused = prepare(&scene.stores, &job).await.unwrap_err();
        millrace_telemetry::chain(&refused)
    };
    let said = refused("b", "nothing").await;
    assert!(said.contains("spec.incremental.from"), "{said}");
    assert!(said.contains("no output of a finished BatchJob"), "{said}");
    let said = refused("b", "b/").await;
    assert!(said.contains("the job's own output"), "{said}");
    scene.drive(&scene.job("a", json!({}))).await;
    std::fs::remove_dir_all(scene.folder.path().join("a/_millrace")).unwrap();
    let said = refused("b", "a").await;
    assert!(said.contains("changed by hand"), "{said}");
}

#[tokio::test]
async fn answers_that_are_gone_are_never_asked_for_again_in_silence() {
    let scene = Scene::new();
    scene.write(rows(0..3));
    scene.drive(&scene.job("a", json!({}))).await;
    let spec = json!({"incremental": {"from": "a"}, "backoffLimitPerIndex": 0});
    let b = scene.job("b", spec);
    prepare(&scene.stores, &b).await.unwrap();
    std::fs::remove_dir_all(scene.folder.path().join("a/parts")).unwrap();
    let manifest = scene.drive(&b).await;
    assert!(!manifest.complete);
    let why = &manifest.failed_shards[0].error;
    assert!(why.contains("is gone"), "{why}");
    assert_eq!(scene.asked().len(), 3);
}

#[tokio::test]
async fn other_weights_at_the_same_place_have_every_row_asked_anew() {
    let scene = Scene::new();
    scene.write(rows(0..20));
    let next = |from: &str| json!({"incremental": {"from": from}});
    scene.server.load("sha256:one");
    scene.drive(&scene.job("a", json!({}))).await;
    scene.drive(&scene.job("b", next("a"))).await;
    assert_eq!(scene.asked().len(), 20, "the weights are the same");
    scene.server.load("sha256:two");
    let manifest = scene.drive(&scene.job("c", next("b"))).await;
    assert_eq!(scene.asked().len(), 40);
    let is_of_two = |part: &LivePart| part.commit.models["embed"] == "sha256:two";
    assert!(manifest.parts.iter().all(is_of_two), "{manifest:?}");
    scene.drive(&scene.job("d", next("c"))).await;
    assert_eq!(scene.asked().len(), 40, "the new weights' answers are kept");
}

#[tokio::test]
async fn of_an_output_by_several_weights_only_what_the_last_ones_said_is_carried_over() {
    let is_well = Arc::new(AtomicBool::new(false));
    let scene = Scene {
        server: FakeServer::unwell_until(is_well.clone()),
        ..Scene::new()
    };
    scene.write(rows(0..9).chain([("odd".to_owned(), "bad at first".to_owned())]));
    let of_run = |run: u32| {
        let spec = json!({"retry": {"maxAttempts": 1}, "rerunFailed": run});
        scene.job("a", spec)
    };
    scene.server.load("sha256:one");
    scene.drive(&of_run(0)).await;
    is_well.store(true, Ordering::Relaxed);
    scene.server.load("sha256:two");
    scene.drive(&of_run(1)).await;
    let before = scene.asked().len();
    let b = scene.job("b", json!({"incremental": {"from": "a"}}));
    scene.drive(&b).await;
    let asked: BTreeSet<String> = scene.asked().split_off(before).into_iter().collect();
    assert_eq!(asked, (0..9).map(text).collect());
    assert_eq!(scene.results(&b).await.len(), 10);
}
