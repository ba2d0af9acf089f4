//! The examples that ask the stand-in run as they are.

use std::process::Command;

use millrace_e2e::files::{copy, repository};
use millrace_e2e::process::{Process, binary};
use millrace_stand_in::{Record, StandIn, StandInOptions};
use serde_json::Value;
use tokio::runtime::Runtime;

/// Where the examples expect the stand-in.
const ADDRESS: &str = "http://127.0.0.1:8090/v1";

/// Runs an example with the stand-in at another port, and returns its totals and what was asked.
fn run(example: &str) -> (Value, Record) {
    let runtime = Runtime::new().unwrap();
    let options = StandInOptions {
        latency_ms: 20,
        ..StandInOptions::default()
    };
    let stand_in = runtime.block_on(StandIn::start(options)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join(example);
    copy(&repository().join("examples").join(example), &place);
    let service = std::fs::read_to_string(place.join("service.yaml")).unwrap();
    assert!(service.contains(ADDRESS));
    let service = service.replace(ADDRESS, &stand_in.base_url());
    std::fs::write(place.join("service.yaml"), service).unwrap();
    let mut command = Command::new(binary("millrace"));
    command
        .env("MILLRACE_API_KEY", "any")
        // The limits of a minute pass in a second.
        .env("MILLRACE_MINUTE_MS", "1000")
        .arg("run")
        .arg("-f")
        .arg(&place);
    Process::start(command, folder.path().join("run.log")).succeed();
    let manifest = std::fs::read(place.join("output/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let _here = runtime.enter();
    (manifest["totals"]["rows"].clone(), stand_in.record())
}

#[test]
fn comments_on_the_posts_of_two_projects() {
    let (rows, record) = run("comments");
    assert_eq!(
        (&rows["succeeded"], &rows["failed"]),
        (&100.into(), &0.into())
    );
    assert_eq!(record.calls.len(), 20);
}

#[test]
fn facts_from_a_transcript() {
    let (rows, record) = run("transcripts");
    assert_eq!(
        (&rows["succeeded"], &rows["failed"]),
        (&400.into(), &0.into())
    );
    assert!(record.calls.len() <= 80, "{}", record.calls.len());
}

#[test]
fn tickets_by_their_length_and_by_how_sure_a_small_model_is() {
    let (rows, record) = run("routes");
    assert_eq!(
        (&rows["succeeded"], &rows["failed"]),
        (&80.into(), &0.into())
    );
    // Fifty short ones several in a call, thirty long ones each alone, and what is sent on.
    assert!(
        (40..100).contains(&record.calls.len()),
        "{}",
        record.calls.len()
    );
}
