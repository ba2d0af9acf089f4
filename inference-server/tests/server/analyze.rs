//! Many texts by several models in one pass.

use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::{
    client::{get, post, post_streamed},
    scene::{SLOW, Scene, Setup},
};

fn texts(count: usize) -> Value {
    let texts = (0..count).map(|i| format!("grain {i}")).collect::<Vec<_>>();
    json!({"texts": texts})
}

#[tokio::test]
async fn every_model_answers_every_text_as_it_does_alone() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let answer = post(&socket, "/analyze/batch", &texts(100)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let reply = answer.json();
    let results = reply["results"].as_array().unwrap();
    assert_eq!(results.len(), 100);
    let alone = json!({"inputs": "grain 7"});
    let alone = post(&socket, "/predict", &alone).await.json();
    assert_eq!(results[7]["classify"], alone);
    assert!(results[7]["embed"].is_array() && results[7]["entities"].is_array());
    assert_eq!(reply["totals"]["texts"], 100);
    assert_eq!(reply["totals"]["succeeded"], 100);
    assert_eq!(reply["totals"]["tokens"], 100 * 3 * 2);
    let named = json!({"texts": ["grain"], "models": ["classify"]});
    let named = post(&socket, "/batch-analyze", &named).await.json();
    assert_eq!(named["results"][0].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn a_text_is_tokenised_once_for_all_models_with_the_same_tokenizer() {
    let tokenised = async |setup: Setup| {
        let scene = setup.start().await;
        let reply = post(&scene.socket(), "/analyze/batch", &texts(100)).await;
        assert_eq!(reply.json()["totals"]["succeeded"], 100);
        let long = json!({"texts": ["a b c d"], "models": ["classify", "embed"], "truncate": true});
        let reply = post(&scene.socket(), "/analyze/batch", &long).await.json();
        let tokens = reply["totals"]["tokens"].clone();
        let count = scene.metric("millrace_tokenized_texts_total").await;
        (count, tokens)
    };
    assert_eq!(tokenised(Setup::default()).await, (101.0, json!(8)));
    // Texts that are cut elsewhere have other tokens.
    let service = r#"
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: all-tasks}
spec:
  models:
  - {name: embed, task: Embedding, maxLength: 3, source: {uri: /models/embed}}
  - {name: classify, task: SequenceClassification, source: {uri: /models/classify}}
  - {name: entities, task: TokenClassification, source: {uri: /models/entities}}
"#;
    let setup = Setup {
        service,
        ..Setup::default()
    };
    assert_eq!(tokenised(setup).await, (202.0, json!(7)));
}

#[tokio::test]
async fn a_text_that_cannot_be_answered_is_an_error_in_its_place() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let body = json!({"texts": ["grain", "", "[nan]", "water"]});
    let reply = post(&socket, "/analyze/batch", &body).await.json();
    let results = &reply["results"];
    assert!(results[0]["classify"].is_array() && results[3]["classify"].is_array());
    assert_eq!(results[1]["classify"]["error_type"], "Empty");
    assert_eq!(results[2]["classify"]["error_type"], "Backend");
    assert!(results[2]["classify"]["error"].is_string());
    assert_eq!(reply["totals"]["succeeded"], 2);
    assert_eq!(reply["totals"]["failed"], 2);
    let one = post(&socket, "/classify/batch", &body).await.json();
    assert!(one["results"][0][0]["label"].is_string(), "{one}");
    assert_eq!(one["results"][1]["error_type"], "Empty");
}

#[tokio::test]
async fn each_endpoint_has_its_bound_and_says_it() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    for (path, most) in [
        ("/analyze/batch", 100),
        ("/stream-analyze", 100),
        ("/batch-analyze", 32),
        ("/classify/batch", 200),
    ] {
        let answer = post(&socket, path, &texts(most)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        let answer = post(&socket, path, &texts(most + 1)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}");
        assert!(answer.text().contains(&most.to_string()), "{path}");
        let answer = post(&socket, path, &texts(0)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        let answer = post(&socket, path, &json!({"texts": 7})).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path}");
    }
}

#[tokio::test]
async fn a_model_that_is_not_there_is_named_beside_those_that_are() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let unknown = post(&socket, "/toxicity/batch", &texts(1)).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let text = unknown.text();
    assert!(
        text.contains("toxicity") && text.contains("classify"),
        "{text}"
    );
    for models in [json!(["toxicity"]), json!([]), json!(["embed", "embed"])] {
        let body = json!({"texts": ["grain"], "models": models});
        let answer = post(&socket, "/analyze/batch", &body).await;
        assert!(answer.status.is_client_error(), "{models}");
    }
}

/// The events of a stream, as name and data.
fn events(stream: &str) -> Vec<(String, Value)> {
    let events = stream.split("\n\n").filter(|event| !event.is_empty());
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), data)
    };
    events.map(event).collect()
}

#[tokio::test]
async fn a_stream_has_one_event_for_each_text_and_then_the_totals() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let body = json!({"texts": ["grain", "", "water"]});
    let answer = post(&socket, "/stream-analyze", &body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let mut events = events(&answer.text());
    let (name, totals) = events.pop().unwrap();
    assert_eq!(name, "totals");
    assert_eq!(totals["succeeded"], 2);
    assert_eq!(totals["failed"], 1);
    assert!(events.iter().all(|(name, _)| name == "result"));
    let mut rows = events.into_iter().map(|(_, row)| row).collect::<Vec<_>>();
    rows.sort_by_key(|row| row["index"].as_u64());
    let whole = post(&socket, "/analyze/batch", &body).await.json();
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row["index"], index);
        assert_eq!(row["result"], whole["results"][index]);
    }
}

#[tokio::test]
async fn a_result_is_sent_while_others_are_still_computed() {
    let setup = Setup {
        fake: SLOW,
        batch_items_max: 1,
        ..Setup::default()
    };
    let scene = setup.start().await;
    // Two seconds of work, one text after the other.
    let mut body = texts(100);
    body["models"] = json!(["classify"]);
    let mut stream = post_streamed(&scene.socket(), "/stream-analyze", &body).await;
    let (mut first, mut seen) = (None, 0);
    while let Some(frame) = stream.frame().await {
        let data = frame.unwrap().into_data().expect("no trailers");
        first.get_or_insert_with(Instant::now);
        seen += String::from_utf8_lossy(&data)
            .matches("event: result")
            .count();
    }
    assert_eq!(seen, 100);
    let lasted = first.expect("an event").elapsed();
    assert!(lasted > Duration::from_millis(200), "{lasted:?}");
}

#[tokio::test]
async fn a_stream_past_its_deadline_ends_with_timeouts_and_totals() {
    let mut setup = Setup {
        fake: SLOW,
        batch_items_max: 1,
        ..Setup::default()
    };
    setup.limits.request_deadline = Duration::from_millis(150);
    let scene = setup.start().await;
    let socket = scene.socket();
    let mut body = texts(50);
    body["models"] = json!(["classify"]);
    let answer = post(&socket, "/stream-analyze", &body).await;
    let events = events(&answer.text());
    assert_eq!(events.len(), 51);
    let (_, totals) = events.last().unwrap();
    assert_eq!(totals["texts"], 50);
    let succeeded = totals["succeeded"].as_u64().unwrap();
    assert!((1..50).contains(&succeeded), "{totals}");
}

#[tokio::test]
async fn requests_are_counted_by_route_not_by_path() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    post(&socket, "/classify/batch", &texts(1)).await;
    let metrics = get(&socket, "/metrics").await.text();
    let counted = r#"millrace_request_total{endpoint="/{model}/batch",status="200"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}
