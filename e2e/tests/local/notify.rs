//! Who is told of the end of a local run.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};

use crate::scene::{Scene, SceneOptions, jsonl};

type Heard = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// A receiver that answers so, and its URL.
async fn receiver(answer: StatusCode) -> (Heard, String) {
    let heard = Heard::default();
    let hear = move |State(heard): State<Heard>, headers: HeaderMap, body: String| async move {
        let event = serde_json::from_str(&body).expect("an event is JSON");
        heard.lock().unwrap().push((headers, event));
        answer
    };
    let routes = Router::new().route("/hook", post(hear));
    let routes = routes.with_state(Arc::clone(&heard));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (heard, url)
}

fn scene(url: &str) -> Scene {
    Scene::new(SceneOptions {
        input: jsonl(100, 50),
        settings: format!("  notify:\n    url: {url}\n    secretRef: {{name: hook}}\n"),
        variables: vec![("MILLRACE_NOTIFY_SECRET", "a secret".to_owned())],
        ..SceneOptions::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_told_once_how_a_run_ended() {
    let (heard, url) = receiver(StatusCode::OK).await;
    let scene = scene(&url);
    scene.run().succeed();
    // Nothing is left to do, so nothing ends.
    scene.run().succeed();
    let heard = heard.lock().unwrap();
    let [(headers, event)] = &heard[..] else {
        panic!("{heard:?}");
    };
    assert_eq!(event["type"], "dev.millrace.batchjob.succeeded");
    assert_eq!(event["subject"], "default/scene");
    let rows = json!({"succeeded": 98, "failed": 2, "skipped": 0});
    assert_eq!(event["data"]["counts"]["rows"], rows);
    let output = event["data"]["output"].as_str().unwrap();
    assert!(output.ends_with("/out"), "{output}");
    assert_eq!(headers["webhook-id"].to_str().unwrap(), event["id"]);
    assert!(headers.contains_key("webhook-signature"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_tells_why() {
    let (heard, url) = receiver(StatusCode::OK).await;
    let scene = scene(&url);
    std::fs::remove_file(scene.path("rows.jsonl")).unwrap();
    assert!(!scene.run().wait().success());
    let heard = heard.lock().unwrap();
    let (_, event) = heard.first().expect("it is told");
    assert_eq!(event["type"], "dev.millrace.batchjob.failed");
    let message = event["data"]["message"].as_str().unwrap();
    assert!(message.contains("rows.jsonl"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_will_not_hear_fails_no_job() {
    let (_, url) = receiver(StatusCode::GONE).await;
    let scene = scene(&url);
    let mut run = scene.run();
    run.succeed();
    assert!(
        run.log().contains("warning: spec.notify.url"),
        "{}",
        run.log()
    );
    assert!(scene.output().join("manifest.json").exists());
}
