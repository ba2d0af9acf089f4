//! What the endpoints answer when nothing is wrong.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::StatusCode;
use millrace_protocol::{
    row::RowErrorCode,
    wire::{ModelReply, Prediction},
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    client::{get, post, rows},
    scene::Scene,
};

#[tokio::test]
async fn embed_answers_one_vector_per_text_in_order() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let one = post(
        &socket,
        "/embed",
        &json!({"inputs": "water turns the wheel"}),
    )
    .await;
    assert_eq!(one.status, StatusCode::OK);
    let two = json!({"inputs": ["grain", "water turns the wheel"], "model": "embed"});
    let two = post(&socket, "/embed", &two).await.json();
    assert_eq!(two.as_array().unwrap().len(), 2);
    assert_eq!(two[1], one.json()[0]);
    assert_ne!(two[0], two[1]);
}

#[tokio::test]
async fn tcp_and_the_socket_serve_the_same() {
    let scene = Scene::start().await;
    let mut stream = tokio::net::TcpStream::connect(scene.address).await.unwrap();
    let request = b"GET /health HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn predict_answers_a_text_flat_and_a_batch_nested() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let one = post(&socket, "/predict", &json!({"inputs": "grain"}))
        .await
        .json();
    assert!(
        one[0]["label"].is_string() && one[0]["score"].is_number(),
        "{one}"
    );
    let batch = post(
        &socket,
        "/predict",
        &json!({"inputs": [["grain"], ["water"]]}),
    )
    .await
    .json();
    assert_eq!(batch.as_array().unwrap().len(), 2);
    assert_eq!(batch[0], one);
    let entities = json!({"inputs": "grain", "model": "entities"});
    assert_eq!(
        post(&socket, "/predict", &entities).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_pair_of_texts_is_refused_rather_than_taken_for_a_batch() {
    let scene = Scene::start().await;
    let pair = post(
        &scene.socket(),
        "/predict",
        &json!({"inputs": ["grain", "water"]}),
    )
    .await;
    assert_eq!(pair.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(pair.json()["error_type"], "Validation");
}

#[tokio::test]
async fn openai_clients_get_floats_or_base64() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let floats = json!({"input": ["grain", "water"], "model": "embed"});
    let floats = post(&socket, "/v1/embeddings", &floats).await.json();
    assert_eq!(floats["object"], "list");
    assert_eq!(floats["model"], "embed");
    assert_eq!(floats["data"][1]["index"], 1);
    assert!(floats["usage"]["prompt_tokens"].as_u64().unwrap() >= 2);

    let base64 = json!({"input": "water", "model": "embed", "encoding_format": "base64"});
    let base64 = post(&socket, "/v1/embeddings", &base64).await.json();
    let bytes = STANDARD
        .decode(base64["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let decoded = bytes
        .chunks(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()));
    let expected = floats["data"][1]["embedding"].as_array().unwrap();
    assert_eq!(decoded.map(f64::from).collect::<Vec<_>>(), as_f32(expected));
}

fn as_f32(values: &[serde_json::Value]) -> Vec<f64> {
    values
        .iter()
        .map(|value| f64::from(value.as_f64().unwrap() as f32))
        .collect()
}

#[tokio::test]
async fn rows_are_answered_by_every_model_in_order() {
    let scene = Scene::start().await;
    let texts = (0..500)
        .map(|i| vec!["grain"; i % 20 + 1].join(" "))
        .collect::<Vec<_>>();
    let texts = texts.iter().map(String::as_str).collect::<Vec<_>>();
    let reply = rows(&scene.socket(), &["classify", "embed"], &texts).await;
    assert_eq!(reply.rows.len(), texts.len());
    assert!(reply.tokens as usize >= 2 * texts.len());
    for (row, same_text) in reply
        .rows
        .iter()
        .zip(reply.rows.iter().cycle().skip(480))
        .take(20)
    {
        assert_eq!(row, same_text);
        assert!(
            matches!(&row[0], ModelReply::Ok(Prediction::Labels(_))),
            "{row:?}"
        );
        assert!(
            matches!(&row[1], ModelReply::Ok(Prediction::Embedding(_))),
            "{row:?}"
        );
    }
    assert_ne!(reply.rows[0], reply.rows[1]);
}

#[tokio::test]
async fn a_row_that_cannot_be_tokenised_fails_alone() {
    let scene = Scene::start().await;
    let reply = rows(&scene.socket(), &["embed"], &["grain", "", "water"]).await;
    assert!(matches!(reply.rows[0][0], ModelReply::Ok(_)));
    assert!(
        matches!(&reply.rows[1][0], ModelReply::Err(error) if error.code == RowErrorCode::EmptyText)
    );
    assert!(matches!(reply.rows[2][0], ModelReply::Ok(_)));
}

#[tokio::test]
async fn long_texts_are_cut_where_that_is_wanted() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let long = vec!["grain"; 1000].join(" ");
    let kept = post(&socket, "/embed", &json!({"inputs": long})).await;
    assert_eq!(kept.status, StatusCode::PAYLOAD_TOO_LARGE);
    let cut = post(
        &socket,
        "/embed",
        &json!({"inputs": long, "truncate": true}),
    )
    .await;
    assert_eq!(cut.status, StatusCode::OK);
    let reply = rows(&socket, &["embed"], &[&long]).await;
    assert!(matches!(reply.rows[0][0], ModelReply::Ok(_)));
    assert_eq!(reply.tokens as usize, millrace_models::fake::MAX_LENGTH);
}

#[tokio::test]
async fn info_names_the_models_and_metrics_count() {
    let scene = Scene::start().await;
    let socket = scene.socket();
    let info = get(&socket, "/info").await.json();
    assert_eq!(info["models"][0]["name"], "embed");
    assert_eq!(
        info["models"][0]["maxLength"],
        millrace_models::fake::MAX_LENGTH
    );
    assert!(info["models"][1]["digest"].is_string());
    post(&socket, "/embed", &json!({"inputs": "grain"})).await;
    let metrics = get(&socket, "/metrics").await.text();
    assert!(metrics.contains(r#"millrace_request_total{endpoint="/embed",status="200"} 1"#));
    assert!(scene.metric("millrace_tokens_total").await >= 1.0);
}
