//! Runs driven to their end over outputs that are not as the lease store believes.

use futures::FutureExt;
use millrace_leases::{LeaseOptions, MemoryLeaseStore};
use millrace_protocol::tally::{Rows, Tally};
use serde_json::json;

use super::*;
use crate::store::StoreOptions;
use crate::work::testing::{self, FakeServer, Say};

/// A job of three shards, its stores, and leases without anything in them.
struct Scene {
    folder: tempfile::TempDir,
    stores: Stores,
    server: FakeServer,
    options: WorkOptions,
}

impl Scene {
    fn new() -> Self {
        let server = FakeServer::start(|_, _| Say::Vectors);
        let options = testing::options(&server);
        Self {
            folder: tempfile::tempdir().unwrap(),
            stores: Stores::new(StoreOptions::default()),
            server,
            options,
        }
    }

    fn job(&self, merge: bool) -> CheckedJob {
        let spec = json!({"output": {"uri": "out", "merge": merge}});
        testing::job(self.folder.path(), &["a", "b", "c"], spec)
    }

    async fn drive(&self, job: &CheckedJob) -> Manifest {
        testing::drive(&self.stores, job, &self.options).await
    }
}

#[tokio::test]
async fn shards_that_only_the_lease_store_holds_for_done_are_worked_off() {
    let scene = Scene::new();
    let leases = &scene.options.leases;
    leases.push(&[0, 1, 2]).await.unwrap();
    for shard in 0..3 {
        leases
            .mark_committed(shard, Tally::default())
            .await
            .unwrap();
    }
    let manifest = scene.drive(&scene.job(false)).await;
    assert!(manifest.complete);
    assert_eq!(manifest.totals.rows.succeeded, 3);
    assert_eq!(scene.server.asked().len(), 3);
    let counted = leases.snapshot().await.unwrap().tally;
    assert_eq!(counted, manifest.totals, "nothing is counted twice");
}

#[tokio::test]
async fn a_run_that_begins_again_revives_the_shards_that_were_given_up() {
    let scene = Scene::new();
    let prepared = prepare(&scene.stores, &scene.job(false)).await.unwrap();
    let leases = scene.options.leases.as_ref();
    leases.push(&[0, 1, 2]).await.unwrap();
    let millrace_leases::Claim::Lease(lease) = leases.claim("a").await.unwrap() else {
        panic!("no lease");
    };
    leases.fail(&lease, "away", true).await.unwrap();
    commits::fill_anew(leases, &prepared.plan, &prepared.committed)
        .await
        .unwrap();
    let snapshot = leases.snapshot().await.unwrap();
    assert_eq!((snapshot.open, snapshot.dead), (3, 0));
}

#[tokio::test]
async fn more_shards_that_are_given_up_than_may_be_end_the_run_and_are_named() {
    for (max, gives_up) in [(2, true), (3, false)] {
        let scene = Scene::new();
        let spec = json!({"maxFailedIndexes": max, "backoffLimitPerIndex": 0});
        let job = testing::job(scene.folder.path(), &["a", "b", "c"], spec);
        let prepared = prepare(&scene.stores, &job).await.unwrap();
        for index in 0..3 {
            let path = scene.folder.path().join(format!("rows-{index}.jsonl"));
            std::fs::write(path, "another file").unwrap();
        }
        let driven = drive(&scene.stores, &job, prepared, &scene.options, None).await;
        let manifest = match driven.unwrap() {
            RunEnd::GivenUp(GiveUp::TooManyFailedIndexes, manifest) if gives_up => manifest,
            RunEnd::Finished(manifest) if !gives_up => manifest,
            other => panic!("{max}: {other:?}"),
        };
        assert_eq!(manifest.failed_indexes().as_deref(), Some("0-2"));
    }
}

#[tokio::test]
async fn the_row_that_is_one_too_many_ends_the_run_at_once() {
    let folder = tempfile::tempdir().unwrap();
    // Bad rows of a window are no greater part of it for being the first to be known.
    for (max, fails) in [(json!(2), [2, 1]), (json!("5%"), [100, 1])] {
        let job = testing::job(folder.path(), &["a"], json!({"maxFailedRows": max}));
        let progress = Progress::default();
        progress.begun(0, 2_000);
        let mut given_up = std::pin::pin!(until_too_many_failed(&job, &progress));
        let fail = |failed| {
            let rows = Rows {
                failed,
                ..Rows::default()
            };
            let tally = Tally {
                rows,
                ..Tally::default()
            };
            progress.answered(0, tally);
        };
        fail(fails[0]);
        assert_eq!(given_up.as_mut().now_or_never(), None, "{max}");
        fail(fails[1]);
        let reason = given_up.as_mut().now_or_never();
        assert_eq!(reason, Some(GiveUp::TooManyFailedRows), "{max}");
    }
}

#[tokio::test]
async fn a_finished_job_that_is_to_be_merged_now_is_finished_once_more() {
    let scene = Scene::new();
    let (apart, merged) = (scene.job(false), scene.job(true));
    assert_eq!(scene.drive(&apart).await.merged, None);
    let is_finished = async |job| matches!(find(&scene.stores, job).await, Ok(Found::Finished(_)));
    assert!(is_finished(&apart).await, "it has nothing left to do");
    assert!(!is_finished(&merged).await);
    let manifest = scene.drive(&merged).await;
    assert_eq!(manifest.merged.as_deref(), Some("results.jsonl"));
    let results = scene.folder.path().join("out/results.jsonl");
    assert_eq!(std::fs::read_to_string(results).unwrap().lines().count(), 3);
    assert_eq!(scene.server.asked().len(), 3, "no row is computed again");
    assert!(is_finished(&merged).await);
}

#[tokio::test]
async fn more_shards_than_a_page_can_be_given_up() {
    let leases = MemoryLeaseStore::new(LeaseOptions::default());
    let shards: Vec<ShardIndex> = (0..2 * GIVEN_UP_PAGE as u32 + 1).collect();
    leases.push(&shards).await.unwrap();
    while let millrace_leases::Claim::Lease(lease) = leases.claim("a").await.unwrap() {
        leases.fail(&lease, "broken", true).await.unwrap();
    }
    let given_up = given_up(&leases).await.unwrap();
    let named: Vec<ShardIndex> = given_up.iter().map(|letter| letter.shard).collect();
    assert_eq!(named, shards);
}
