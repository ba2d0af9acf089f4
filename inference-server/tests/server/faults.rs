//! Bad requests and bad models: each costs its own request or text, and the server lives.

use std::time::Duration;

use http::{Method, StatusCode};
use millrace_inference_server::http::app::HttpLimits;
use millrace_protocol::{
    row::RowErrorCode,
    wire::{ModelReply, ROWS_PATH, RowsRequest},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    client::{get, post, post_rows, rows, send},
    scene::{Scene, Setup},
};

/// What takes texts, by each way of reading them.
const ENDPOINTS: [&str; 8] = [
    "/embed",
    "/predict",
    "/v1/embeddings",
    "/analyze/batch",
    "/batch-analyze",
    "/stream-analyze",
    "/classify/batch",
    ROWS_PATH,
];

async fn check(scene: &Scene, path: &str, body: &Value, status: u16, error_type: &str) {
    let answer = post(&scene.socket(), path, body).await;
    assert_eq!(answer.status.as_u16(), status, "{path} {}", answer.text());
    assert_eq!(answer.json()["error_type"], error_type, "{}", answer.text());
    assert!(answer.json()["error"].is_string());
    scene.assert_alive().await;
}

#[tokio::test]
async fn requests_that_ask_for_the_wrong_thing_say_what_is_wrong() {
    let scene = Scene::start().await;
    let many = vec!["grain"; 33];
    check(&scene, "/embed", &json!({"inputs": []}), 400, "Empty").await;
    check(&scene, "/embed", &json!({"inputs": [""]}), 400, "Empty").await;
    check(
        &scene,
        "/embed",
        &json!({"inputs": many}),
        413,
        "Validation",
    )
    .await;
    check(
        &scene,
        "/embed",
        &json!({"inputs": "grain", "model": "classify"}),
        424,
        "Backend",
    )
    .await;
    check(
        &scene,
        "/predict",
        &json!({"inputs": "grain", "model": "embed"}),
        424,
        "Backend",
    )
    .await;
    check(
        &scene,
        "/embed",
        &json!({"inputs": "grain", "model": "none"}),
        404,
        "Validation",
    )
    .await;
    check(&scene, "/embed", &json!({"inputs": 7}), 422, "Validation").await;
    check(
        &scene,
        "/embed",
        &json!({"inputs": [-1, 1e308]}),
        422,
        "Validation",
    )
    .await;
    check(&scene, "/embed", &json!({}), 422, "Validation").await;
    check(&scene, "/predict", &json!({"inputs": []}), 400, "Empty").await;
    check(&scene, "/no/such/endpoint", &json!({}), 404, "Validation").await;
}

#[tokio::test]
async fn rows_requests_are_bounded_too() {
    let setup = Setup {
        limits: HttpLimits {
            rows_batch_items_max: 3,
            ..HttpLimits::default()
        },
        ..Setup::default()
    };
    let scene = setup.start().await;
    let socket = scene.socket();
    for (models, texts, status) in [
        (&["embed"][..], &[][..], 400),
        (&[], &["grain"], 400),
        (&["none"], &["grain"], 404),
        (&["embed"; 4], &["grain"], 422),
        (&["embed"], &["grain"; 4], 413),
    ] {
        assert_eq!(
            post_rows(&socket, models, texts).await.status.as_u16(),
            status
        );
    }
    scene.assert_alive().await;
}

#[tokio::test]
async fn a_million_dots_are_refused_before_they_are_tokenised() {
    let limits = HttpLimits {
        payload_bytes_max: 64 << 20,
        ..HttpLimits::default()
    };
    let scene = Setup {
        limits,
        ..Setup::default()
    }
    .start()
    .await;
    let dots = vec![".".repeat(1_000_000); 20];
    check(
        &scene,
        "/embed",
        &json!({"inputs": dots, "truncate": true}),
        413,
        "Validation",
    )
    .await;
    let dots = dots.iter().map(String::as_str).collect::<Vec<_>>();
    let reply = rows(&scene.socket(), &["embed"], &dots).await;
    for row in reply.rows {
        assert!(
            matches!(&row[0], ModelReply::Err(error) if error.code == RowErrorCode::TextTooLong)
        );
    }
    assert_eq!(reply.tokens, 0);
}

#[tokio::test]
async fn a_body_above_the_bound_is_refused() {
    let scene = Scene::start().await;
    let text = "x".repeat(3_000_000);
    check(
        &scene,
        "/embed",
        &json!({"inputs": text}),
        413,
        "Validation",
    )
    .await;
}

/// Writes raw bytes and reads until the server closes the connection.
async fn raw(scene: &Scene, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(scene.socket()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn an_absurd_content_length_is_refused_by_its_number() {
    let scene = Scene::start().await;
    for path in ENDPOINTS {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: s\r\ncontent-length: 99999999999\r\n\r\n");
        let answer = raw(&scene, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        scene.assert_alive().await;
    }
}

#[tokio::test]
async fn a_chunked_body_without_an_end_is_cut_at_the_bound() {
    let limits = HttpLimits {
        payload_bytes_max: 10,
        ..HttpLimits::default()
    };
    let scene = Setup {
        limits,
        ..Setup::default()
    }
    .start()
    .await;
    let head = "POST /embed HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = raw(
        &scene,
        format!("{head}14\r\n{{\"inputs\": \"12345678\r\n").as_bytes(),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    scene.assert_alive().await;
}

#[tokio::test]
async fn headers_and_bodies_that_never_end_are_given_up() {
    let limits = HttpLimits {
        header_deadline: Duration::from_millis(100),
        body_deadline: Duration::from_millis(100),
        ..HttpLimits::default()
    };
    let scene = Setup {
        limits,
        ..Setup::default()
    }
    .start()
    .await;
    let answer = raw(&scene, b"POST /embed HTTP/1.1\r\nhost: s\r\nx-slow: ").await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    let head = "POST /embed HTTP/1.1\r\nhost: s\r\ncontent-length: 100\r\n\r\n{\"inputs\"";
    let answer = raw(&scene, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    scene.assert_alive().await;
}

#[tokio::test]
async fn garbage_never_kills_the_server() {
    let scene = Scene::start().await;
    let nested = "[".repeat(250_000);
    let rows_request = RowsRequest {
        models: vec!["embed".into()],
        texts: vec!["x".into()],
    };
    let rows_request = rmp_serde::to_vec_named(&rows_request).unwrap();
    // An array that announces four billion elements and ends.
    let huge_array = [
        0x82, 0xa6, b'm', b'o', b'd', b'e', b'l', b's', 0xdd, 0xff, 0xff, 0xff, 0xff,
    ];
    let mut bodies = vec![
        Vec::new(),
        b"\0\xff\xfe".to_vec(),
        b"{\"inputs\": \"\xff\xfe\"}".to_vec(),
        b"{\"inputs\": \"\\ud800\"}".to_vec(),
        b"null".to_vec(),
        format!("{{\"inputs\": {nested}").into_bytes(),
        nested.into_bytes(),
        huge_array.to_vec(),
        vec![0x91; 100_000],
    ];
    bodies.extend((0..rows_request.len()).map(|end| rows_request[..end].to_vec()));
    for path in ENDPOINTS {
        for body in &bodies {
            let answer = send(&scene.socket(), Method::POST, path, body.clone())
                .await
                .unwrap();
            assert!(
                answer.status.is_client_error(),
                "{path} {body:?}: {}",
                answer.text()
            );
        }
        scene.assert_alive().await;
    }
}

#[tokio::test]
async fn a_text_that_makes_the_model_fail_fails_alone() {
    let scene = Scene::start().await;
    for (poison, code) in [
        ("[panic]", RowErrorCode::ModelFailed),
        ("[fail]", RowErrorCode::ModelFailed),
        ("[nan]", RowErrorCode::NotFinite),
    ] {
        let mut texts = vec!["grain"; 40];
        texts[17] = poison;
        let reply = rows(&scene.socket(), &["embed"], &texts).await;
        for (index, row) in reply.rows.iter().enumerate() {
            match &row[0] {
                ModelReply::Ok(_) => assert_ne!(index, 17),
                ModelReply::Err(error) => {
                    assert_eq!((index, error.code), (17, code));
                    // What a panic says may quote the text.
                    let words = "told to panic";
                    assert!(!error.message.contains(words), "{}", error.message);
                }
            }
        }
        check(
            &scene,
            "/embed",
            &json!({"inputs": ["grain", poison]}),
            424,
            "Backend",
        )
        .await;
    }
}

#[tokio::test]
async fn a_batch_too_large_for_the_device_is_halved() {
    let scene = Setup {
        fake: crate::scene::OOM_ABOVE_20_TOKENS,
        ..Setup::default()
    }
    .start()
    .await;
    let long = vec!["grain"; 30].join(" ");
    let mut texts = vec!["water turns the wheel"; 30];
    texts[3] = &long;
    let reply = rows(&scene.socket(), &["embed"], &texts).await;
    for (index, row) in reply.rows.iter().enumerate() {
        match &row[0] {
            ModelReply::Ok(_) => assert_ne!(index, 3),
            ModelReply::Err(error) => {
                assert_eq!((index, error.code), (3, RowErrorCode::OutOfMemory));
            }
        }
    }
    assert!(scene.metric("millrace_batch_splits_total").await >= 1.0);
}

#[tokio::test]
async fn a_wrong_method_is_named() {
    let scene = Scene::start().await;
    assert_eq!(
        get(&scene.socket(), "/embed").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn a_wish_against_the_services_normalisation_is_refused_before_anything_is_computed() {
    let scene = Scene::start().await;
    // Computed, this text would be a failure of the model.
    let body = json!({"inputs": "[fail]", "normalize": false});
    check(&scene, "/embed", &body, 422, "Validation").await;
    let body = json!({"inputs": "grain", "normalize": true});
    let answer = post(&scene.socket(), "/embed", &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}
