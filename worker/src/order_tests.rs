//! Runs that work off important rows first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::TryStreamExt;
use millrace_protocol::plan::{Difference, Duplicates, Shard};
use millrace_protocol::tally::Rows;
use serde_json::{Value, json};

use super::*;
use crate::output;
use crate::store::StoreOptions;
use crate::work::testing::{self, FakeServer};

/// Rows of the input; the last one is no JSON.
const ROWS: usize = 121;

/// A folder of rows, and a server that fails on texts with "bad" in them until it is well.
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
        let scene = Self {
            folder: tempfile::tempdir().unwrap(),
            stores: Stores::new(StoreOptions::default()),
            server,
            is_well,
        };
        let lines = (0..ROWS - 1)
            .map(|row| json!({"id": row, "text": text(row), "tier": tier(row)}).to_string() + "\n");
        let lines = lines.collect::<String>() + "{no json\n";
        std::fs::write(scene.folder.path().join("all.jsonl"), lines).unwrap();
        scene
    }

    fn job(&self, order: Value, more: Value) -> CheckedJob {
        let mut spec = json!({
            "input": {"uris": ["all.jsonl"], "idField": "id", "order": order},
            "output": {"uri": "out"},
            "sharding": {"targetBytes": 1024},
            "retry": {"maxAttempts": 1},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        testing::job(self.folder.path(), &[], spec)
    }

    async fn drive(&self, job: &CheckedJob) -> Manifest {
        testing::drive(&self.stores, job, &testing::options(&self.server)).await
    }

    /// Works off some shards of a job's run alone, and gives it up where `give_up` says why.
    async fn work(&self, job: &CheckedJob, shards: &[u32], give_up: Option<&str>) {
        let prepared = prepare(&self.stores, job).await.unwrap();
        let options = testing::options(&self.server);
        options.leases.push(shards).await.unwrap();
        let worked = work(&self.stores, job, &prepared, &options).await;
        assert_eq!(worked.unwrap(), Ended::Drained);
        let ended = conclude(job, &prepared, options.leases.as_ref(), give_up, None).await;
        assert_eq!(
            matches!(ended.unwrap(), Finish::Finished(_)),
            give_up.is_some()
        );
    }

    /// The line of each row with an id, and the class of the shard that it ended in. No row has two.
    async fn lines(&self, job: &CheckedJob) -> BTreeMap<usize, (Value, Shard)> {
        let location = self.stores.open(&job.output.uri).unwrap();
        let visible = output::visible(&location).await.unwrap();
        let mut lines = BTreeMap::new();
        for part in &visible.parts {
            let part = std::slice::from_ref(part);
            let results: Vec<String> =
                (output::results(&location, part).try_collect().await).unwrap();
            let errors: Vec<_> = output::errors(&location, part).try_collect().await.unwrap();
            let errors = errors.iter().map(|it| serde_json::to_string(it).unwrap());
            for line in results.into_iter().chain(errors) {
                let line: Value = serde_json::from_str(&line).unwrap();
                let id = line["id"]
                    .as_str()
                    .map_or(ROWS - 1, |id| id.parse().unwrap());
                let twice = lines.insert(id, (line, part[0].range));
                assert!(twice.is_none(), "{id} is there twice");
            }
        }
        lines
    }
}

/// Every third text is bad, and the last forty are those of the first, which are of other tiers.
fn text(row: usize) -> String {
    let content = row % 80;
    let word = if content.is_multiple_of(3) {
        "bad"
    } else {
        "good"
    };
    format!("{word} {content} {}", "x".repeat(content))
}

fn tier(row: usize) -> &'static str {
    ["tin", "gold", "silver"][(row + row / 80 * 2) % 3]
}

/// The order that tests ask for.
fn order() -> Value {
    json!(["tier == 'gold'", "tier == 'silver'"])
}

/// The class of a row in that order.
fn class(row: usize) -> u8 {
    match tier(row) {
        _ if row == ROWS - 1 => 2,
        "gold" => 0,
        "silver" => 1,
        _ => 2,
    }
}

fn rows(manifest: &Manifest) -> (u64, u64, u64) {
    let Rows {
        succeeded,
        failed,
        skipped,
    } = manifest.totals.rows;
    (succeeded, failed, skipped)
}

#[tokio::test]
async fn rows_of_a_class_are_those_of_its_shards_which_come_before_those_of_the_next() {
    let scene = Scene::new();
    let job = scene.job(order(), json!({}));
    let prepared = prepare(&scene.stores, &job).await.unwrap();
    let classes: Vec<_> = (prepared.plan.shards.iter()).map(|it| it.class).collect();
    assert!(classes.is_sorted() && classes.len() > 9, "{classes:?}");
    let manifest = scene.drive(&job).await;
    let lines = scene.lines(&job).await;
    assert_eq!(lines.len(), ROWS);
    for (row, (_, shard)) in &lines {
        assert_eq!(shard.class, Some(class(*row)), "row {row}");
    }
    // Parts stand by their place in the input, and of each range one for each class.
    let places: Vec<_> = manifest.parts.iter().map(|it| it.range.place()).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(
        scene
            .server
            .asked()
            .iter()
            .map(|it| it.texts.len())
            .sum::<usize>(),
        ROWS - 1
    );
    // An order decides no result line.
    let without = scene.job(Value::Null, json!({}));
    assert_eq!(without.spec_sha256, job.spec_sha256);
}

#[tokio::test]
async fn rows_that_a_filter_leaves_out_are_counted_once() {
    let scene = Scene::new();
    let filter = json!({"expression": "tier != 'silver' and id >= 60"});
    let input = json!({"uris": ["all.jsonl"], "idField": "id", "order": order(), "filter": filter});
    let manifest = scene
        .drive(&scene.job(order(), json!({"input": input})))
        .await;
    let kept = (60..ROWS - 1).filter(|row| tier(*row) != "silver").count() as u64;
    let (succeeded, failed, skipped) = rows(&manifest);
    // What is no JSON is an error.
    assert_eq!(succeeded + failed, kept + 1);
    assert_eq!(succeeded + failed + skipped, ROWS as u64);
}

#[tokio::test]
async fn a_plan_that_is_there_keeps_its_classes_whatever_order_the_job_has_by_then() {
    for then in [
        json!(["tier == 'tin'"]),
        json!(["id > 7", "id > 3", "id > 1"]),
        Value::Null,
    ] {
        let scene = Scene::new();
        let job = scene.job(order(), json!({}));
        scene.work(&job, &[0, 5], None).await;
        let changed = scene.job(then.clone(), json!({}));
        scene.drive(&changed).await;
        let lines = scene.lines(&changed).await;
        assert_eq!(lines.len(), ROWS, "{then}");
        for (row, (_, shard)) in &lines {
            assert_eq!(shard.class, Some(class(*row)), "row {row}, {then}");
        }
    }
}

#[tokio::test]
async fn failed_rows_and_shards_are_run_again_in_their_classes_by_another_order() {
    let scene = Scene::new();
    let first = scene.job(order(), json!({}));
    scene.work(&first, &[0, 1, 7], Some("cancelled")).await;
    let again = scene.job(json!(["tier == 'tin'"]), json!({"rerunFailed": 2}));
    let second = scene.drive(&again.at_run(2)).await;
    let bad = (0..ROWS - 1)
        .filter(|row| text(*row).contains("bad"))
        .count() as u64
        + 1;
    assert_eq!(rows(&second), (ROWS as u64 - bad, bad, 0));
    assert_eq!(scene.lines(&again).await.len(), ROWS);
    scene.is_well.store(true, Ordering::Relaxed);
    let third = scene.drive(&again).await;
    assert_eq!(rows(&third), (ROWS as u64 - 1, 1, 0));
    for (row, (_, shard)) in &scene.lines(&again).await {
        assert_eq!(shard.class, Some(class(*row)), "row {row}");
    }
    let location = scene.stores.open(&again.output.uri).unwrap();
    let plan = plan::read(&location, 3).await.unwrap().unwrap();
    let classes: Vec<_> = plan.shards.iter().map(|it| it.class).collect();
    assert!(classes.is_sorted(), "{classes:?}");
}

#[tokio::test]
async fn of_equal_rows_the_first_of_the_most_important_class_is_asked() {
    let scene = Scene::new();
    let job = scene.job(order(), json!({"dedup": {}, "rerunFailed": 1}));
    scene.drive(&job.at_run(1)).await;
    let asked = |scene: &Scene| {
        scene
            .server
            .asked()
            .iter()
            .map(|it| it.texts.len())
            .sum::<usize>()
    };
    assert_eq!(asked(&scene), 80);
    scene.is_well.store(true, Ordering::Relaxed);
    let manifest = scene.drive(&job).await;
    let bad = (0..80).filter(|row| text(*row).contains("bad")).count();
    assert_eq!(asked(&scene), 80 + bad);
    assert_eq!(rows(&manifest), (ROWS as u64 - 1, 1, 0));
    assert_eq!(manifest.dedup.as_ref().map(|it| it.duplicates), Some(40));
    let lines = scene.lines(&job).await;
    assert_eq!(lines.len(), ROWS);
    for (row, other) in (0..40).map(|row| (row, row + 80)) {
        let (asked, copied) = match class(other) < class(row) {
            true => (other, row),
            false => (row, other),
        };
        let ((asked, by), (copied, of)) = (&lines[&asked], &lines[&copied]);
        assert_eq!(
            copied["duplicateOf"], asked["position"],
            "rows {row} and {other}"
        );
        assert_eq!(copied["result"], asked["result"]);
        assert!(matches!(by.duplicates, None | Some(Duplicates::Without(_))));
        assert!(of.is_of_duplicates());
    }
}

#[tokio::test]
async fn what_is_carried_over_is_counted_once_for_each_row() {
    let scene = Scene::new();
    scene.is_well.store(true, Ordering::Relaxed);
    scene.drive(&scene.job(Value::Null, json!({}))).await;
    let asked = scene.server.asked().len();
    let more = json!({"incremental": {"from": "out"}, "output": {"uri": "next"}});
    let manifest = scene.drive(&scene.job(order(), more)).await;
    let Difference {
        unchanged,
        fresh,
        gone,
        ..
    } = manifest.difference.clone().expect("it is incremental");
    assert_eq!((unchanged, fresh, gone), (ROWS as u64 - 1, 0, 0));
    assert_eq!(rows(&manifest), (ROWS as u64 - 1, 1, 0));
    assert_eq!(scene.server.asked().len(), asked, "nothing was asked again");
}

#[tokio::test]
async fn a_preflight_counts_each_row_once_and_tells_how_many_each_class_has() {
    let scene = Scene::new();
    let job = scene.job(order(), json!({}));
    let plan = plan::draft(&scene.stores, &job).await.unwrap();
    let found = plan::preflight(&scene.stores, &job, &plan, None)
        .await
        .unwrap();
    assert_eq!(found.rows, ROWS as u64 - 1);
    let of_class = |wanted| (0..ROWS - 1).filter(|row| class(*row) == wanted).count() as u64;
    assert_eq!(found.classes, [0, 1, 2].map(of_class));
    assert_eq!(found.bad_rows["invalid_json"].count, 1);
}
