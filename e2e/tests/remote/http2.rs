//! Calls travel over few connections where an API speaks HTTP/2, and over HTTP/1.1 where it does not.

use std::collections::BTreeSet;

use millrace_e2e::certificates::make_certificates;
use millrace_e2e::remote::{KEY, SceneOptions};
use millrace_stand_in::{Record, StandInOptions, TlsOptions};
use serde_json::json;

use crate::scene::Scene;
use crate::served::{Served, wait};

const ROWS: usize = 80;

/// Has rows answered over TLS whose authority stands in the Secret with the key.
fn answered(http1_only: bool) -> Record {
    let certificates = tempfile::tempdir().unwrap();
    make_certificates(certificates.path());
    let served = Served::new(Scene::new(SceneOptions {
        rows: ROWS,
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 40}}),
        api: StandInOptions {
            // Long enough for all places to be taken on a busy machine.
            latency_ms: 2_000,
            tls: TlsOptions {
                tls_certificate: Some(certificates.path().join("server.crt")),
                tls_key: Some(certificates.path().join("server.key")),
                http1_only,
            },
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    }));
    let scene = &served.scene;
    let authority = std::fs::read_to_string(certificates.path().join("ca.crt")).unwrap();
    served.write_secret("api", &[("apiKey", KEY.to_owned()), ("ca.crt", authority)]);
    served.give_rows("job");
    let worker = served.start("worker.log");
    wait(&worker, "answers", || {
        scene.record().with_status(200).count() == ROWS
    });
    scene.record()
}

fn connections(record: &Record) -> usize {
    let ports: BTreeSet<u16> = record.calls.iter().map(|call| call.peer_port).collect();
    ports.len()
}

#[test]
fn an_api_that_speaks_http_2_is_asked_over_few_connections() {
    let record = answered(false);
    assert!(record.calls.iter().all(|call| call.version == "HTTP/2.0"));
    assert!(record.peak().in_flight > 20, "{:?}", record.peak());
    // A few may be begun before the first is known to be enough.
    let connections = connections(&record);
    assert!(connections <= 5, "{connections}");
}

#[test]
fn an_api_that_does_not_is_asked_over_http_1_1() {
    let record = answered(true);
    assert!(record.calls.iter().all(|call| call.version == "HTTP/1.1"));
    let connections = connections(&record);
    // One for each of the forty calls at a time, which later calls use again. A few more may be begun while
    // none is free yet.
    assert!((21..=50).contains(&connections), "{connections}");
}
