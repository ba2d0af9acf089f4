//! Credentials that are exchanged in the midst of a job.

use millrace_e2e::remote::{KEY, SceneOptions};
use millrace_e2e::s3_server::S3Server;
use millrace_stand_in::StandInOptions;
use serde_json::{Value, json};

use crate::scene::Scene;
use crate::served::{Given, Served, wait};

const ROWS: usize = 400;

#[test]
fn a_job_goes_on_with_the_credentials_that_take_the_place_of_its_own() {
    let mut s3 = S3Server::start();
    let served = Served::new(Scene::new(SceneOptions {
        rows: ROWS,
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 5}}),
        job: json!({"sharding": {"targetBytes": 1024}}),
        api: StandInOptions {
            latency_ms: 50,
            ..StandInOptions::default()
        },
    }));
    let scene = &served.scene;
    std::fs::copy(
        scene.path("rows.jsonl"),
        s3.bucket_folder().join("rows.jsonl"),
    )
    .unwrap();
    served.write_secret("bucket", &s3.variables());
    served.give(Given {
        name: "job",
        rows: "s3://bucket/rows.jsonl".to_owned(),
        output: "s3://bucket/out".to_owned(),
        template: "{{ title }}: {{ text }}",
        credentials: Some("bucket"),
        priority: 0,
    });
    let worker = served.start("worker.log");
    wait(&worker, "calls", || scene.record().calls.len() >= 60);

    s3.start_again_with("another-secret");
    wait(&worker, "refusal", || {
        worker.log().contains("denies access")
    });
    served.write_secret("bucket", &s3.variables());
    let out = s3.bucket_folder().join("out");
    let committed = || -> Vec<Value> {
        let commits = std::fs::read_dir(out.join("_millrace/runs/0001/commits"));
        let commits = commits.into_iter().flatten().map(|file| {
            let commit = std::fs::read(file.unwrap().path()).unwrap();
            serde_json::from_slice::<Value>(&commit).unwrap()
        });
        let parts = commits.map(|commit| {
            let part = commit["part"].as_str().expect("it has rows").to_owned();
            std::fs::read_to_string(out.join(part)).unwrap()
        });
        let parts: Vec<String> = parts.collect();
        let lines = parts.iter().flat_map(|part| part.lines());
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    wait(&worker, "end of the job", || committed().len() >= ROWS);
    let lines = committed();
    let mut ids: Vec<String> = lines.iter().map(|line| line["id"].to_string()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), lines.len()), (ROWS, ROWS));
    assert!(!worker.log().contains("another-secret"));
    scene.assert_nothing_is_told(&["worker.log"]);
}

#[test]
fn calls_carry_the_key_that_takes_the_place_of_theirs() {
    const OTHER_KEY: &str = "sk-that-comes-later";
    let served = Served::new(Scene::new(SceneOptions {
        rows: 60,
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 1}}),
        api: StandInOptions {
            latency_ms: 50,
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    }));
    let scene = &served.scene;
    served.give_rows("job");
    let worker = served.start("worker.log");
    wait(&worker, "calls", || scene.record().calls.len() >= 5);
    // All at once, as the kubelet exchanges it.
    served.write_secret("next", &[("apiKey", OTHER_KEY.to_owned())]);
    let key_of = |secret: &str| served.secrets().join(secret).join("apiKey");
    std::fs::rename(key_of("next"), key_of("api")).unwrap();
    wait(&worker, "results", || scene.lines("parts").len() == 60);
    let calls = scene.record().calls;
    let mut keys: Vec<&str> = calls.iter().map(|call| call.key.as_str()).collect();
    assert_eq!(keys.len(), 60);
    keys.dedup();
    assert_eq!(keys, [KEY, OTHER_KEY]);
    assert!(!worker.log().contains(OTHER_KEY));
}
