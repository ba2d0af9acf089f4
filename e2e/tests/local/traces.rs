//! The spans of all processes of a run, as a collector gets them: one trace, and each span below
//! the one that caused it.

use std::collections::{BTreeMap, BTreeSet};

use crate::scene::{Scene, SceneOptions, jsonl};
use millrace_e2e::collector::{Collector, Seen};
use millrace_e2e::redis_server::RedisServer;

const ROWS: usize = 300;

/// Bytes of a shard: a handful of shards.
const SHARD_BYTES: usize = 4096;

fn scene(collector: &Collector) -> Scene {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    Scene::new(SceneOptions {
        input: jsonl(ROWS, 0),
        settings: format!("  sharding:\n    targetBytes: {SHARD_BYTES}\n"),
        // Each shard is leased once.
        lease_ttl_ms: 3_600_000,
        variables: vec![endpoint],
        ..SceneOptions::default()
    })
}

/// Gives the job an id, as the API server does.
fn give_uid(scene: &Scene) {
    let path = scene.path("job.yaml");
    let job = std::fs::read_to_string(&path).unwrap();
    let uid = "  uid: 6f0d7a51-3b2e-4d6c-9a43-0c6f2f0d1b2a\n";
    let with_uid = job.replace("  name: scene\n", &format!("  name: scene\n{uid}"));
    assert_ne!(job, with_uid);
    std::fs::write(path, with_uid).unwrap();
}

/// Checks that all spans are of one trace and each is below the span that caused it. `whole` is the
/// span of the whole run.
fn check(spans: &[Seen], whole: &[u8]) {
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    let by_id: BTreeMap<_, _> = spans.iter().map(|span| (&span.span_id[..], span)).collect();
    for span in spans.iter().filter(|span| span.span_id != whole) {
        let parent = match &span.parent_id[..] {
            id if id == whole => "batch_job",
            id => by_id.get(id).map_or("nobody", |parent| &parent.name),
        };
        let expected = match span.name.as_str() {
            "plan" | "shard" | "finish" => "batch_job",
            "commit" | "POST /v1/rows" => "shard",
            "batch" => "POST /v1/rows",
            other => panic!("there is no span {other:?}"),
        };
        assert_eq!(parent, expected, "{span:#?}");
    }
    let of = |name| spans.iter().filter(move |span| span.name == name);
    let shards = jsonl(ROWS, 0).len().div_ceil(SHARD_BYTES);
    assert_eq!((of("plan").count(), of("finish").count()), (1, 1));
    assert_eq!(
        (of("shard").count(), of("commit").count()),
        (shards, shards)
    );
    assert!(of("POST /v1/rows").count() >= shards && of("batch").count() >= 1);
    let planned: i64 = of("plan").map(|plan| plan.number("millrace.shards")).sum();
    assert_eq!(planned, shards as i64);
    for name in ["shard", "POST /v1/rows", "batch"] {
        let rows: i64 = of(name).map(|span| span.number("millrace.rows")).sum();
        assert_eq!(rows, ROWS as i64, "{name}");
    }
    let tokens = |name| -> i64 { of(name).map(|span| span.number("millrace.tokens")).sum() };
    assert_eq!(tokens("shard"), tokens("batch"));
}

#[test]
fn planner_worker_finisher_and_server_of_a_job_write_one_trace() {
    let collector = Collector::start();
    let redis = RedisServer::start();
    let scene = scene(&collector);
    give_uid(&scene);
    let mut server = scene.server();
    for (step, log) in [
        ("plan", "plan.log"),
        ("work", "work.log"),
        ("finish", "finish.log"),
    ] {
        scene.worker(step, &redis.url(), log).succeed();
    }
    server.signal(libc::SIGTERM);
    server.succeed();

    let spans = collector.spans();
    let plan = spans
        .iter()
        .find(|span| span.name == "plan")
        .expect("it was planned");
    // The span of the whole is the operator's to write.
    check(&spans, &plan.parent_id);
    let services: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
    let expected = ["millrace-inference-server", "millrace-worker"];
    assert_eq!(services, expected.into());
}

#[test]
fn a_local_run_writes_one_trace_and_the_span_of_the_whole() {
    let collector = Collector::start();
    let scene = scene(&collector);
    scene.run().succeed();

    let spans = collector.spans();
    let whole: Vec<_> = spans
        .iter()
        .filter(|span| span.parent_id.is_empty())
        .collect();
    assert_eq!(whole.len(), 1, "{whole:#?}");
    assert_eq!(whole[0].name, "batch_job");
    assert_eq!(whole[0].number("millrace.rows"), ROWS as i64);
    check(&spans, &whole[0].span_id);
}
