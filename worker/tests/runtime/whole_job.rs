//! A whole job, from its plan to its manifest, whose rows a foreign server answers.

use std::sync::Arc;

use millrace_leases::{LeaseOptions, MemoryLeaseStore};
use millrace_protocol::row::RowErrorCode;
use millrace_worker::run::{self, RunEnd, WorkOptions};
use millrace_worker::store::{StoreOptions, Stores};
use millrace_worker::work::client::{AddressError, Client, ServerAddress};
use millrace_worker::work::progress::Progress;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::job::{embedding, job, runtime, texts};
use crate::real::Real;

const ROWS: usize = 600;

#[tokio::test]
async fn a_job_is_worked_off_by_a_foreign_server() {
    let server = Real::start("crash-on=hemlock", &["--supervise"]);
    let folder = tempfile::tempdir().unwrap();
    let mut rows = texts(ROWS);
    rows[321] = "a hemlock row".to_owned();
    let lines = rows
        .iter()
        .map(|text| json!({"text": text}).to_string() + "\n");
    std::fs::write(folder.path().join("rows.jsonl"), lines.collect::<String>()).unwrap();
    let job = job(
        folder.path(),
        json!({"runtime": runtime("TEI", embedding("embed"))}),
    );
    let stores = Stores::new(StoreOptions::default());
    let lease_options = LeaseOptions::default();
    let options = WorkOptions {
        server: ServerAddress::Url(server.url().parse().unwrap()),
        leases: Arc::new(MemoryLeaseStore::new(lease_options)),
        lease_ttl: lease_options.lease_ttl,
        progress: Arc::new(Progress::default()),
        stop: CancellationToken::new(),
    };
    let prepared = run::prepare(&stores, &job).await.unwrap();
    assert!(prepared.plan.shards.len() > 3);
    let ended = run::drive(&stores, &job, prepared, &options, None);
    let ended = ended.await.unwrap();
    let RunEnd::Finished(manifest) = ended else {
        panic!("{ended:?}");
    };
    assert!(manifest.complete);
    let rows = manifest.totals.rows;
    assert_eq!((rows.succeeded, rows.failed), (ROWS as u64 - 1, 1));
    let [model] = manifest.models.as_slice() else {
        panic!("{:?}", manifest.models);
    };
    assert_eq!((&*model.name, &*model.digest), ("step", "acme/server:1"));
    let errors = std::fs::read_dir(folder.path().join("out/errors")).unwrap();
    let errors = errors.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    let errors = errors.collect::<String>();
    assert!(
        errors.contains(RowErrorCode::ServerCrashed.as_str()),
        "{errors}"
    );
}

#[test]
fn a_server_is_reached_in_the_way_that_its_service_says() {
    let folder = std::path::Path::new("/");
    let brought = job(folder, json!({"runtime": runtime("TEI", embedding("m"))}));
    let source = json!({"uri": "hf://a/b"});
    let models = json!({"models": [{"name": "m", "task": "Embedding", "source": source}]});
    let own = job(folder, models);
    let url = ServerAddress::Url("http://127.0.0.1:1".parse().unwrap());
    let socket = ServerAddress::Socket("/run/socket".into());
    let refused = |address, job| Client::new(address, job).err();
    assert_eq!(refused(&url, &own), Some(AddressError::NoRuntime));
    assert_eq!(refused(&socket, &brought), Some(AddressError::NoUrl));
    assert_eq!(refused(&url, &brought), None);
    assert_eq!(refused(&socket, &own), None);
}
