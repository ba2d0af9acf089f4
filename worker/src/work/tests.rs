//! What becomes of the shards in hand when something fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_leases::{LeaseStore, MemoryLeaseStore};
use millrace_protocol::commit::Commit;
use millrace_protocol::layout;
use millrace_protocol::lease::DeadLetter;
use millrace_protocol::tally::Rows;
use object_store::path::Path;
use tempfile::TempDir;

use super::progress::Progress;
use super::testing::{FakeServer, Say, Scene};
use super::*;
use crate::metrics::Metrics;
use crate::read::ReadError;
use crate::store::odd::{Habits, Odd};
use crate::store::{self, Location, StoreError};

/// Runs a scene to its end.
async fn run(scene: Scene) -> (Result<Ended, WorkError>, Arc<MemoryLeaseStore>, TempDir) {
    let (worker, leases, folder) = scene.worker();
    let ended = worker.run(CancellationToken::new()).await;
    (ended, leases, folder)
}

async fn dead(leases: &MemoryLeaseStore) -> Vec<DeadLetter> {
    leases.dead_letters(0, 10).await.unwrap()
}

/// An output in a store with odd habits.
fn odd_output(habits: Habits) -> Location {
    Location {
        store: Arc::new(Odd::new(habits)),
        path: Path::from("out"),
        name: "out".to_owned(),
        uploads: None,
    }
}

#[tokio::test]
async fn an_output_that_fails_stops_the_worker_and_is_charged_to_no_shard() {
    let full = Habits {
        full_below: Some("out/parts"),
        ..Habits::default()
    };
    let denied = Habits {
        denied_below: Some("out/_millrace"),
        ..Habits::default()
    };
    for habits in [full, denied] {
        let server = FakeServer::start(|_, _| Say::Vectors);
        let scene = Scene::plan(&["a", "b", "c"], &server, Some(odd_output(habits))).await;
        let (ended, leases, _folder) = run(scene).await;
        assert!(matches!(ended, Err(WorkError::Shard(_))), "{ended:?}");
        let snapshot = leases.snapshot().await.unwrap();
        assert_eq!((snapshot.open, snapshot.leased, snapshot.dead), (3, 0, 0));
    }
}

#[test]
fn an_input_that_may_not_be_read_is_charged_to_no_shard_and_one_that_is_broken_is() {
    let denied = StoreError::at(
        "rows.jsonl",
        object_store::Error::PermissionDenied {
            path: "rows.jsonl".to_owned(),
            source: "it is not allowed".into(),
        },
    );
    assert!(ShardError::Read(denied.into()).is_everyones());
    let broken = ReadError::NotFound {
        uri: "rows.jsonl".to_owned(),
    };
    assert!(!ShardError::Read(broken).is_everyones());
}

#[tokio::test]
async fn an_error_of_one_shard_gives_the_others_in_hand_back() {
    let server =
        FakeServer::start(
            |request, _| match request.texts.iter().any(|text| text == "refused") {
                true => Say::Status(404),
                false => Say::Nothing,
            },
        );
    let scene = Scene::plan(&["hangs", "refused", "never claimed"], &server, None).await;
    let (ended, leases, _folder) = run(scene).await;
    let Err(WorkError::Shard(ShardError::Submit(_))) = ended else {
        panic!("{ended:?}");
    };
    let snapshot = leases.snapshot().await.unwrap();
    assert_eq!((snapshot.open, snapshot.leased, snapshot.dead), (3, 0, 0));
}

#[tokio::test]
async fn a_panic_costs_its_shard_alone() {
    let server = FakeServer::start(|_, _| Say::Vectors);
    let mut scene = Scene::plan(&["a", "b", "c"], &server, None).await;
    // No input has this index, and the panic names it.
    scene.context.plan.shards[1].input = 987_654;
    let (ended, leases, _folder) = run(scene).await;
    assert_eq!(ended.unwrap(), Ended::Drained);
    assert_eq!(leases.snapshot().await.unwrap().done, 2);
    let letters = dead(&leases).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].shard, 1);
    let said = &letters[0].error;
    assert!(said.contains("panicked"), "{letters:?}");
    assert!(!said.contains("987654"), "the panic is quoted: {letters:?}");
}

#[tokio::test]
async fn a_shard_of_another_plan_is_given_up() {
    let server = FakeServer::start(|_, _| Say::Vectors);
    let scene = Scene::plan(&["a"], &server, None).await;
    scene.leases.push(&[7]).await.unwrap();
    let (ended, leases, _folder) = run(scene).await;
    assert_eq!(ended.unwrap(), Ended::Drained);
    assert_eq!(leases.snapshot().await.unwrap().done, 1);
    let letters = dead(&leases).await;
    assert!(letters[0].error.contains("no shard 7"), "{letters:?}");
}

#[tokio::test]
async fn a_shard_that_another_commits_meanwhile_is_done_whatever_becomes_of_our_files() {
    let output = odd_output(Habits {
        full_below: Some("out/parts"),
        ..Habits::default()
    });
    let (store, path) = (output.store.clone(), output.below(&layout::commit(1, 0)));
    let others = Commit {
        shard: 0,
        epoch: 1,
        attempt: "other".to_owned(),
        part: None,
        errors: None,
        ledger: None,
        error_ledger: None,
        carried: 0,
        duplicates: 0,
        rows: Rows::default(),
        tokens: 0,
        cost: Default::default(),
        routes: Vec::new(),
        sha256: None,
        models: Default::default(),
    };
    let server = FakeServer::start(move |_, _| {
        let record = serde_json::to_vec(&others).unwrap();
        futures::executor::block_on(store::replace(&store, &path, record)).unwrap();
        Say::Vectors
    });
    let scene = Scene::plan(&["a"], &server, Some(output)).await;
    let (ended, leases, _folder) = run(scene).await;
    assert_eq!(ended.unwrap(), Ended::Drained);
    assert_eq!(leases.snapshot().await.unwrap().done, 1);
}

#[tokio::test]
async fn rows_and_shards_are_counted_by_what_became_of_them() {
    let server = FakeServer::start(|request, _| match request.texts.join("").as_str() {
        "refused" => Say::Status(404),
        _ => Say::Vectors,
    });
    let metrics = Metrics::default();
    for texts in [&["a", "b", "c"][..], &["refused"]] {
        let mut scene = Scene::plan(texts, &server, None).await;
        scene.context.progress = Arc::new(Progress::counted_in(metrics.clone()));
        if let Some(shard) = scene.context.plan.shards.get_mut(1) {
            // No input has this index.
            shard.input = 9;
        }
        let (ended, _leases, _folder) = run(scene).await;
        assert_eq!(ended.is_err(), texts == ["refused"], "{ended:?}");
    }
    let text = metrics.render();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples: BTreeMap<&str, &str> = samples
        .map(|line| line.rsplit_once(' ').expect("a name and a value"))
        .collect();
    for (name, expected) in [
        ("millrace_worker_rows_total{outcome=\"succeeded\"}", "2"),
        ("millrace_worker_rows_total{outcome=\"failed\"}", "0"),
        ("millrace_worker_tokens_total", "2"),
        ("millrace_worker_shards_total{outcome=\"committed\"}", "2"),
        ("millrace_worker_shards_total{outcome=\"failed\"}", "1"),
        ("millrace_worker_shards_total{outcome=\"released\"}", "1"),
        ("millrace_worker_shards_in_hand", "0"),
    ] {
        assert_eq!(samples.get(name), Some(&expected), "{name}\n{text}");
    }
}
