//! What goes wrong keeps no row from its end, and ends no other row.

use millrace_e2e::process::{PATIENCE, Process, until};
use millrace_e2e::redis_server::RedisServer;
use millrace_stand_in::{Faults, StandInOptions};
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions};

fn scene(rows: usize, faults: Faults) -> Scene {
    Scene::new(SceneOptions {
        rows,
        remote: json!({"rowsPerCall": 5, "timeout": "2s", "limits": {"concurrency": 10}}),
        job: json!({"retry": {"maxAttempts": 8, "initialBackoff": "10ms", "maxBackoff": "50ms"}}),
        api: StandInOptions {
            faults,
            ..StandInOptions::default()
        },
    })
}

fn check_all_succeed(faults: Faults) {
    let scene = scene(200, faults);
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 200);
    assert_eq!(scene.lines("errors"), [] as [Value; 0]);
    scene.assert_nothing_is_told(&["run.log"]);
}

#[test]
fn calls_that_fail_are_made_again() {
    check_all_succeed(Faults {
        failed_every: Some(5),
        overloaded_every: Some(7),
        ..Faults::default()
    });
}

#[test]
fn a_call_that_fails_is_not_made_again_before_the_api_says() {
    let scene = Scene::new(SceneOptions {
        rows: 2,
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 1}}),
        job: json!({"retry": {"maxAttempts": 8, "initialBackoff": "10ms", "maxBackoff": "50ms"}}),
        api: StandInOptions {
            faults: Faults {
                failed_every: Some(2),
                failed_retry_after_ms: Some(700),
                ..Faults::default()
            },
            ..StandInOptions::default()
        },
    });
    scene.run().succeed();
    let calls = scene.record().calls;
    assert_eq!(calls.len(), 3, "{calls:#?}");
    assert_eq!((calls[1].status, calls[2].status), (Some(500), Some(200)));
    let waited = calls[2].at_ms - calls[1].ended_ms.unwrap();
    assert!(waited >= 700, "{waited}");
}

#[test]
fn answers_that_cannot_be_split_are_asked_for_row_by_row() {
    check_all_succeed(Faults {
        malformed_every: Some(7),
        short_every: Some(3),
        ..Faults::default()
    });
}

#[test]
fn a_call_without_an_answer_is_made_again() {
    check_all_succeed(Faults {
        silent_every: Some(20),
        ..Faults::default()
    });
}

/// Works fifty rows off with these faults, which must cost the seventeenth alone; gives the scene and its error.
fn only_row_17_fails(faults: Faults) -> (Scene, Value) {
    let scene = scene(50, faults);
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 49);
    let mut errors = scene.lines("errors");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0]["id"], "row-17");
    let error = errors[0]["error"].take();
    (scene, error)
}

#[test]
fn a_refused_row_is_found_among_its_company() {
    let (_, error) = only_row_17_fails(Faults {
        refused_text: Some("Row 17:".to_owned()),
        ..Faults::default()
    });
    assert_eq!(error["code"], "refused");
    assert_eq!(error["step"], "said");
}

#[test]
fn a_row_on_which_the_api_fails_is_found_among_its_company() {
    let (scene, error) = only_row_17_fails(Faults {
        failed_text: Some("Row 17:".to_owned()),
        ..Faults::default()
    });
    assert_eq!(error["code"], "model_failed");
    // The row has the tries of the job, with others and then alone.
    assert_eq!(scene.record().with_status(500).count(), 8);
}

#[test]
fn too_many_failed_rows_stop_the_job_and_keep_what_is_done() {
    let scene = Scene::new(SceneOptions {
        rows: 600,
        remote: json!({"rowsPerCall": 1, "limits": {"concurrency": 4}}),
        job: json!({"maxFailedRows": "15%", "sharding": {"targetBytes": 1024}}),
        api: StandInOptions {
            latency_ms: 30,
            faults: Faults {
                // A few of the first two hundred, and all of the next.
                refused_text: Some("row 2".to_owned()),
                ..Faults::default()
            },
            ..StandInOptions::default()
        },
    });
    assert!(!scene.run().wait().success());
    let (done, failed) = (scene.lines("parts").len(), scene.lines("errors").len());
    assert!(done > 0 && done + failed < 500, "{done} {failed}");
    let manifest = std::fs::read(scene.path("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["complete"], false);
    assert!(manifest.to_string().contains("maxFailedRows"), "{manifest}");
}

#[test]
fn a_row_that_is_too_long_ends_alone() {
    let scene = scene(
        20,
        Faults {
            context_tokens_max: Some(400),
            ..Faults::default()
        },
    );
    let mut rows = std::fs::read_to_string(scene.path("rows.jsonl")).unwrap();
    let long = "word ".repeat(1_000);
    rows.push_str(&format!(
        "\n{}",
        json!({"id": "long", "title": "a", "text": long})
    ));
    std::fs::write(scene.path("rows.jsonl"), rows).unwrap();
    scene.run().succeed();
    assert_eq!(scene.lines("parts").len(), 20);
    let errors = scene.lines("errors");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert_eq!(errors[0]["error"]["code"], "text_too_long");
}

#[test]
fn a_wrong_key_stops_the_run_and_blames_no_row() {
    let scene = Scene::new(SceneOptions {
        api: StandInOptions {
            api_key: Some("another".to_owned()),
            ..StandInOptions::default()
        },
        ..SceneOptions::default()
    });
    let mut run = scene.run();
    assert!(!run.wait().success());
    let used = "see to the key in MILLRACE_API_KEY (spec.remote.apiKeySecretRef)";
    assert!(run.log().contains(used), "{}", run.log());
    let calls = scene.record().calls;
    assert!(!calls.is_empty());
    assert!(calls.iter().all(|call| call.status == Some(401)));
    assert_eq!(scene.lines("errors"), [] as [Value; 0]);
    scene.assert_nothing_is_told(&["run.log"]);
}

#[test]
fn a_service_at_an_address_within_the_pod_is_refused_before_anything_is_asked() {
    let scene = scene(5, Faults::default());
    let redis = RedisServer::start();
    scene.step(&redis, "plan", "plan.log").succeed();
    let mut command = scene.command("millrace-worker");
    command.arg("work").arg("-f").arg(scene.path("job.yaml"));
    command.args(["--redis", &redis.url(), "--remote"]);
    // As the operator sets it for all pods.
    command.env("MILLRACE_ALLOW_LOOPBACK", "false");
    let mut worker = Process::start(command, scene.path("work.log"));
    assert!(!worker.wait().success());
    let log = worker.log();
    assert!(log.contains("127.0.0.1, which is this pod itself"), "{log}");
    assert!(scene.record().calls.is_empty());
}

#[test]
fn a_run_that_is_killed_goes_on_and_each_row_ends_once() {
    let scene = Scene::new(SceneOptions {
        rows: 400,
        remote: json!({"rowsPerCall": 5, "limits": {"concurrency": 10}}),
        job: json!({"sharding": {"targetBytes": 2048}}),
        api: StandInOptions {
            latency_ms: 20,
            ..StandInOptions::default()
        },
    });
    for calls in [20, 40, 60] {
        let mut run = scene.run();
        let seen = until(PATIENCE, || {
            (scene.record().calls.len() >= calls).then_some(())
        });
        assert!(seen.is_some(), "{}", run.log());
        run.kill();
    }
    scene.run().succeed();
    let manifest = std::fs::read(scene.path("out/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["totals"]["rows"]["succeeded"], 400, "{manifest}");
}

#[test]
fn an_api_that_is_not_there_is_named_while_it_is_waited_for() {
    let scene = Scene::new(SceneOptions::default());
    let manifests = std::fs::read_to_string(scene.path("job.yaml")).unwrap();
    let (before, behind) = manifests.split_once(r#""baseUrl":""#).unwrap();
    let (_, behind) = behind.split_once('"').unwrap();
    let nobody = "http://127.0.0.1:1/v1";
    let elsewhere = format!(r#"{before}"baseUrl":"{nobody}"{behind}"#);
    std::fs::write(scene.path("job.yaml"), elsewhere).unwrap();
    let mut run = scene.run();
    let said = until(PATIENCE, || {
        let log = run.log();
        (log.contains("the API is not reached") && log.contains(nobody)).then_some(())
    });
    assert!(said.is_some(), "{}", run.log());
    run.kill();
}

#[test]
fn an_api_that_may_not_be_reached_is_refused_by_the_plan() {
    let scene = Scene::new(SceneOptions::default());
    let mut plan = scene.command("millrace-worker");
    plan.env("MILLRACE_ALLOW_LOOPBACK", "false");
    plan.arg("plan").arg("-f").arg(scene.path("job.yaml"));
    // It is refused before any Redis is asked.
    plan.args(["--redis", "redis://127.0.0.1:1"]);
    plan.arg("--report").arg(scene.path("report.json"));
    let mut plan = Process::start(plan, scene.path("plan.log"));
    assert_eq!(plan.wait().code(), Some(1), "{}", plan.log());
    let report = std::fs::read_to_string(scene.path("report.json")).unwrap();
    for word in ["spec.remote.baseUrl", "MILLRACE_ALLOW_LOOPBACK"] {
        assert!(report.contains(word), "{report}");
    }
    assert!(!scene.path("out").exists(), "something was planned");
}
