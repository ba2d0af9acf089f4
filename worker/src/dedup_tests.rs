//! Runs that ask about rows with the same content once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::TryStreamExt;
use millrace_protocol::plan::{Dedup, Difference};
use millrace_protocol::tally::Rows;
use millrace_protocol::wire::{ModelReply, Prediction, RowsReply};
use serde_json::{Value, json};

use super::*;
use crate::output;
use crate::store::StoreOptions;
use crate::work::testing::{self, FakeServer, Say};

/// A folder of rows, and a server that answers a text with its length, but fails on those with "bad" in
/// them until it is well.
struct Scene {
    folder: tempfile::TempDir,
    stores: Stores,
    server: FakeServer,
    is_well: Arc<AtomicBool>,
}

impl Scene {
    fn new() -> Self {
        let is_well = Arc::new(AtomicBool::new(false));
        Self {
            folder: tempfile::tempdir().unwrap(),
            stores: Stores::new(StoreOptions::default()),
            server: FakeServer::unwell_until(is_well.clone()),
            is_well,
        }
    }

    /// Writes rows with these texts; their ids are their numbers.
    fn write(&self, texts: &[String]) {
        let line =
            |(row, text): (usize, &String)| json!({"id": row, "text": text}).to_string() + "\n";
        let lines: String = texts.iter().enumerate().map(line).collect();
        std::fs::write(self.folder.path().join("all.jsonl"), lines).unwrap();
    }

    fn job(&self, more: Value) -> CheckedJob {
        let mut spec = json!({
            "input": {"uris": ["all.jsonl"], "idField": "id"},
            "output": {"uri": "out"},
            "sharding": {"targetBytes": 1024},
            "retry": {"maxAttempts": 1},
            "dedup": {},
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

    /// The line of each row, result or error, by id. No row has two.
    async fn lines(&self, job: &CheckedJob) -> BTreeMap<usize, Value> {
        let location = self.stores.open(&job.output.uri).unwrap();
        let visible = output::visible(&location).await.unwrap();
        let results = output::results(&location, &visible.parts);
        let results: Vec<String> = results.try_collect().await.unwrap();
        let errors = output::errors(&location, &visible.parts);
        let errors: Vec<_> = errors.try_collect().await.unwrap();
        let errors = errors.iter().map(|it| serde_json::to_string(it).unwrap());
        let mut lines = BTreeMap::new();
        for line in results.into_iter().chain(errors) {
            let line: Value = serde_json::from_str(&line).unwrap();
            let id = line["id"].as_str().unwrap().parse().unwrap();
            assert!(lines.insert(id, line).is_none(), "{id} is there twice");
        }
        lines
    }

    /// What was asked, once for each time.
    fn asked(&self) -> Vec<String> {
        let asked = self.server.asked().into_iter();
        asked.flat_map(|request| request.texts).collect()
    }
}

/// The texts of 120 rows, every fourth of which is that of an earlier one far away. Each tenth text is
/// bad.
fn texts() -> Vec<String> {
    let text = |content: usize| {
        let word = if content.is_multiple_of(10) {
            "bad"
        } else {
            "good"
        };
        format!("{word} {content} {}", "x".repeat(content % 40))
    };
    let content = |row: usize| match row % 4 {
        3 => row / 4 * 2,
        _ => row - row / 4,
    };
    (0..120).map(|row| text(content(row))).collect()
}

/// The first row with the text of each row.
fn first(texts: &[String], row: usize) -> usize {
    texts.iter().position(|text| *text == texts[row]).unwrap()
}

/// Each row ended like the first row with its text, and says so if it is another one.
fn assert_like_first(texts: &[String], lines: &BTreeMap<usize, Value>) {
    assert_eq!(lines.len(), texts.len());
    for (row, line) in lines {
        let first = first(texts, *row);
        let of_first = &lines[&first];
        for field in ["result", "error"] {
            assert_eq!(line[field], of_first[field], "{row}");
        }
        let expected = match first == *row {
            true => &Value::Null,
            false => &of_first["position"],
        };
        assert_eq!(&line["duplicateOf"], expected, "{row}");
    }
}

fn duplicates(manifest: &Manifest) -> u64 {
    let Dedup { duplicates, .. } = manifest.dedup.as_ref().expect("the job says dedup");
    *duplicates
}

#[tokio::test]
async fn equal_rows_are_asked_once_and_end_alike_wherever_they_lie() {
    for compression in ["None", "Zstd"] {
        let scene = Scene::new();
        let texts = texts();
        scene.write(&texts);
        let job = scene.job(json!({"output": {"uri": "out", "compression": compression}}));
        let manifest = scene.drive(&job).await;
        assert_eq!(scene.asked().len(), 90);
        let Rows {
            succeeded,
            failed,
            skipped,
        } = manifest.totals.rows;
        assert_eq!((succeeded, failed, skipped), (105, 15, 0));
        assert_eq!(duplicates(&manifest), 24);
        let lines = scene.lines(&job).await;
        assert_like_first(&texts, &lines);
        assert_eq!(lines[&3]["error"]["code"], "model_failed");
        // Parts stand in the order of the input.
        let places: Vec<_> = manifest.parts.iter().map(|it| it.range.place()).collect();
        assert!(places.is_sorted(), "{places:?}");
    }
}

#[tokio::test]
async fn failed_rows_are_run_again_once_for_all_their_duplicates() {
    let scene = Scene::new();
    let texts = texts();
    scene.write(&texts);
    let job = scene.job(json!({"rerunFailed": 2}));
    scene.drive(&job.at_run(1)).await;
    let second = scene.drive(&job.at_run(2)).await;
    assert_eq!(scene.asked().len(), 90 + 9);
    assert_eq!((second.totals.rows.failed, duplicates(&second)), (15, 24));
    assert_like_first(&texts, &scene.lines(&job).await);
    scene.is_well.store(true, Ordering::Relaxed);
    let third = scene.drive(&job).await;
    assert_eq!(scene.asked().len(), 90 + 9 + 9);
    assert_eq!((third.totals.rows.succeeded, duplicates(&third)), (120, 30));
    assert_like_first(&texts, &scene.lines(&job).await);
}

#[tokio::test]
async fn a_run_that_is_cut_off_anywhere_goes_on_without_asking_again() {
    let scene = Scene::new();
    scene.is_well.store(true, Ordering::Relaxed);
    let texts = texts();
    scene.write(&texts);
    let job = scene.job(json!({}));
    // Each process works off one shard more, and finish is cut off after it found what is to be copied.
    let mut processes = 0;
    let manifest = loop {
        processes += 1;
        let prepared = prepare(&scene.stores, &job).await.unwrap();
        let options = scene.options();
        let done = |shard: &u32| prepared.committed.iter().any(|it| it.shard == *shard);
        let shards = 0..prepared.plan.shards.len() as u32;
        let ended = conclude(&job, &prepared, options.leases.as_ref(), None, None).await;
        match ended.unwrap() {
            Finish::Finished(manifest) => break manifest,
            Finish::Incomplete(missing) => {
                let first_open = shards.clone().find(|shard| !done(shard)).unwrap();
                assert_eq!(missing[0], first_open, "duplicates are last");
                options.leases.push(&missing[..1]).await.unwrap();
                let worked = work(&scene.stores, &job, &prepared, &options).await;
                assert_eq!(worked.unwrap(), Ended::Drained);
            }
        }
    };
    assert_eq!(processes, manifest.parts.len() + 1);
    assert_eq!(manifest.totals.rows.succeeded, 120);
    assert_eq!(scene.asked().len(), 90);
    assert_like_first(&texts, &scene.lines(&job).await);
    let left = scene.folder.path().join("out/_millrace/runs/0001");
    assert!(!left.join("copies.json").exists(), "it is of use to nobody");
}

#[tokio::test]
async fn two_planners_agree_and_the_lists_of_one_of_them_go() {
    let scene = Scene::new();
    scene.is_well.store(true, Ordering::Relaxed);
    scene.write(&texts());
    let job = scene.job(json!({}));
    let (one, other) = tokio::join!(prepare(&scene.stores, &job), prepare(&scene.stores, &job));
    let (one, other) = (one.unwrap().plan, other.unwrap().plan);
    assert_eq!(one, other);
    scene.drive(&job).await;
    let lists = scene
        .folder
        .path()
        .join("out/_millrace/runs/0001/duplicates");
    let planner = one.dedup.expect("the job says dedup").planner;
    for list in std::fs::read_dir(lists).unwrap() {
        let name = list.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with(&planner), "{name} is of no plan");
    }
    assert_eq!(scene.asked().len(), 90);
}

#[tokio::test]
async fn a_duplicate_of_a_row_whose_shard_was_given_up_is_asked_itself() {
    let scene = Scene::new();
    scene.is_well.store(true, Ordering::Relaxed);
    scene.write(&texts());
    let broken = scene.folder.path().join("a.jsonl");
    std::fs::write(&broken, json!({"id": 200, "text": texts()[5]}).to_string()).unwrap();
    let input = json!({"uris": ["a.jsonl", "all.jsonl"], "idField": "id"});
    let job = scene.job(json!({"input": input, "backoffLimitPerIndex": 0}));
    let prepared = prepare(&scene.stores, &job).await.unwrap();
    std::fs::write(&broken, "another file").unwrap();
    let options = scene.options();
    let driven = drive(&scene.stores, &job, prepared, &options, None).await;
    let Ok(RunEnd::Finished(manifest)) = driven else {
        panic!("{driven:?}");
    };
    assert_eq!(manifest.failed_shards.len(), 1);
    assert_eq!(manifest.totals.rows.succeeded, 120);
    let lines = scene.lines(&job).await;
    assert_eq!(lines[&5]["duplicateOf"], Value::Null);
    assert_eq!(lines[&7]["duplicateOf"], lines[&2]["position"]);
}

#[tokio::test]
async fn duplicates_are_counted_apart_from_what_is_carried_over() {
    let scene = Scene::new();
    scene.is_well.store(true, Ordering::Relaxed);
    let mut texts = texts();
    scene.write(&texts);
    scene
        .drive(&scene.job(json!({"output": {"uri": "first"}})))
        .await;
    assert_eq!(scene.asked().len(), 90);
    for row in [0, 3, 50] {
        texts[row] = "new".to_owned();
    }
    scene.write(&texts);
    let second = scene.job(json!({"incremental": {"from": "first"}}));
    let manifest = scene.drive(&second).await;
    assert_eq!(scene.asked().len(), 91);
    let Difference {
        unchanged, fresh, ..
    } = manifest.difference.clone().expect("it is incremental");
    let counted = unchanged + fresh + duplicates(&manifest);
    assert_eq!((counted, fresh), (120, 1));
    assert_like_first(&texts, &scene.lines(&second).await);
}

#[tokio::test]
async fn rows_that_a_filter_leaves_out_are_no_duplicates() {
    let scene = Scene::new();
    scene.is_well.store(true, Ordering::Relaxed);
    scene.write(&["one".to_owned(), "one".to_owned(), "one".to_owned()]);
    let filter = json!({"expression": "id > 0"});
    let input = json!({"uris": ["all.jsonl"], "idField": "id", "filter": filter});
    let job = scene.job(json!({"input": input}));
    let manifest = scene.drive(&job).await;
    let rows = manifest.totals.rows;
    assert_eq!((rows.succeeded, rows.skipped), (2, 1));
    assert_eq!((scene.asked().len(), duplicates(&manifest)), (1, 1));
    let lines = scene.lines(&job).await;
    assert_eq!(lines[&2]["duplicateOf"], lines[&1]["position"]);
}

#[tokio::test]
async fn what_is_almost_the_same_gets_the_result_of_the_first() {
    let scene = Scene::new();
    scene.is_well.store(true, Ordering::Relaxed);
    let long = |seed: usize| -> String {
        let words = (0..200).map(|word| format!("w{seed}-{word}"));
        words.collect::<Vec<_>>().join(" ")
    };
    let mut texts: Vec<String> = (0..6).map(long).collect();
    // Another ending, another case, the same as the former, and something else.
    texts.push(format!("{} after all", long(2)));
    texts.push(long(3).to_uppercase());
    texts.push(format!("{} after all", long(2)));
    texts.push(format!("{} {}", long(9), long(2)));
    scene.write(&texts);
    let job = scene.job(json!({"dedup": {"near": {"threshold": 0.9}}}));
    let manifest = scene.drive(&job).await;
    assert_eq!((scene.asked().len(), duplicates(&manifest)), (7, 3));
    let lines = scene.lines(&job).await;
    assert_eq!(lines.len(), 10);
    for (row, first) in [(6, 2), (7, 3), (8, 2)] {
        assert_eq!(lines[&row]["result"], lines[&first]["result"]);
        let of = &lines[&row]["duplicateOf"];
        assert_eq!(of["offset"], lines[&first]["position"]["offset"], "{of}");
        let similarity = of["similarity"].as_f64().unwrap();
        assert!((0.9..=1.0).contains(&similarity), "{of}");
    }
    assert_eq!(lines[&9]["duplicateOf"], Value::Null);
    // What was almost the same is no answer that another job may build on.
    let next = scene.job(json!({
        "incremental": {"from": "out"}, "dedup": null, "output": {"uri": "next"},
    }));
    let manifest = scene.drive(&next).await;
    let fresh = manifest.difference.expect("it is incremental").fresh;
    assert_eq!((fresh, scene.asked().len()), (3, 10));
}

#[tokio::test]
async fn rows_whose_vectors_an_earlier_job_made_almost_the_same_get_the_result_of_the_first() {
    let mut scene = Scene::new();
    // Of texts with one first word the vectors are a few degrees apart, and of others a right angle.
    scene.server = FakeServer::start(|request, _| {
        let vector = |text: &String| {
            let mut words = text.split(' ').map(|word| word.parse::<usize>().unwrap());
            let (cluster, own) = (words.next().unwrap(), words.next().unwrap());
            let mut vector = vec![0.0; 64];
            (vector[cluster], vector[32 + own]) = (1.0, 0.1);
            vec![ModelReply::Ok(Prediction::Embedding(vector))]
        };
        Say::Reply(RowsReply {
            rows: request.texts.iter().map(vector).collect(),
            tokens: request.texts.len() as u64,
        })
    });
    // Eight texts of each of ten first words, and of each text a second row far behind it.
    let texts = (0..160).map(|row| format!("{} {}", row % 10, row % 80 / 10));
    let texts: Vec<String> = texts.collect();
    scene.write(&texts[..150]);
    let vectors = scene.job(json!({"output": {"uri": "vectors"}, "dedup": null}));
    scene.drive(&vectors).await;
    scene.write(&texts);
    let near = |more: Value| {
        let mut near = json!({"method": "Embedding", "from": "vectors", "step": "embed"});
        for (key, value) in more.as_object().unwrap() {
            near[key] = value.clone();
        }
        json!({"dedup": {"near": near}})
    };
    let before = scene.asked().len();
    let job = scene.job(near(json!({"threshold": 0.97})));
    let manifest = scene.drive(&job).await;
    assert_eq!(
        (scene.asked().len() - before, duplicates(&manifest)),
        (10, 150)
    );
    let lines = scene.lines(&job).await;
    assert_eq!(lines.len(), 160);
    for row in 10..160 {
        let (of, first) = (&lines[&row]["duplicateOf"], &lines[&(row % 10)]);
        assert_eq!(of["offset"], first["position"]["offset"], "{row}");
        assert_eq!(lines[&row]["result"], first["result"], "{row}");
        match row % 80 < 10 {
            true => assert_eq!(of["similarity"], Value::Null, "{row} is equal"),
            false => assert!((0.97..1.0).contains(&of["similarity"].as_f64().unwrap())),
        }
    }
    // Their cosine is 0.99.
    let job = scene.job(
        json!({"output": {"uri": "strict"}, "dedup": near(json!({"threshold": 0.995}))["dedup"]}),
    );
    assert_eq!(duplicates(&scene.drive(&job).await), 80);
    for (more, rows, expected) in [
        (
            json!({"from": "nothing"}),
            &texts[..],
            "no output of a finished BatchJob",
        ),
        (json!({"step": "other"}), &texts[..], "no vector"),
        (
            json!({}),
            &["1 2 3".to_owned()][..],
            "no row of this job has a vector",
        ),
    ] {
        scene.write(rows);
        let mut spec = near(more);
        spec["output"] = json!({"uri": "refused"});
        let refused = prepare(&scene.stores, &scene.job(spec)).await.unwrap_err();
        let RunError::Plan(refused @ PlanError::Vectors(_)) = refused else {
            panic!("{refused:?}");
        };
        let message = millrace_telemetry::chain(&refused).to_string();
        assert!(message.contains("spec.dedup.near.from"), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}
