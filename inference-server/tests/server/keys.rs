//! Who may ask.

use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use millrace_crds::{SecretRef, inference_service::Auth};
use serde_json::{Value, json};

use crate::{
    client::{post, rows},
    scene::{API_KEY, OTHER_API_KEY, Scene, Setup},
};

async fn guarded(requests_per_minute: Option<u32>) -> Scene {
    let auth = Auth {
        secret_ref: SecretRef {
            name: "clients".into(),
        },
        requests_per_minute,
    };
    let setup = Setup {
        auth: Some(auth),
        ..Setup::default()
    };
    setup.start().await
}

/// Asks over TCP with the headers given.
async fn ask(
    scene: &Scene,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap, Value) {
    let stream = tokio::net::TcpStream::connect(scene.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in [("host", "server")].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    let body = json!({"inputs": "grain", "input": "grain"}).to_string();
    let request = request.body(Full::new(bytes::Bytes::from(body))).unwrap();
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    (parts.status, parts.headers, body)
}

#[tokio::test]
async fn only_whoever_brings_a_key_is_answered_over_tcp() {
    let scene = guarded(None).await;
    let bearer = format!("Bearer {API_KEY}");
    for headers in [
        [("authorization", bearer.as_str())],
        [("x-api-key", API_KEY)],
    ] {
        let (status, _, _) = ask(&scene, "POST", "/embed", &headers).await;
        assert_eq!(status, StatusCode::OK);
    }
    for headers in [
        &[][..],
        &[("authorization", "Bearer wrong")],
        &[("x-api-key", "acme")],
        &[("x-api-key", "")],
    ] {
        let (status, replied, body) = ask(&scene, "POST", "/embed", headers).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{headers:?}");
        assert_eq!(replied["www-authenticate"], "Bearer");
        assert_eq!(body["error_type"], "Unauthorized");
        assert!(!body.to_string().contains("wrong"), "no key is repeated");
    }
    let (status, _, body) = ask(&scene, "POST", "/v1/embeddings", &[]).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(body["error"]["message"].is_string(), "OpenAI's shape");
    let (status, _, _) = ask(&scene, "GET", "/info", &[]).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn probes_and_the_socket_of_the_worker_need_no_key() {
    let scene = guarded(Some(1)).await;
    for path in ["/health", "/ready", "/metrics"] {
        let (status, _, _) = ask(&scene, "GET", path, &[]).await;
        assert_eq!(status, StatusCode::OK, "{path}");
    }
    let socket = scene.socket();
    for _ in 0..3 {
        assert_eq!(rows(&socket, &["embed"], &["grain"]).await.rows.len(), 1);
        let answer = post(&socket, "/embed", &json!({"inputs": "grain"})).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_key_that_asks_too_often_is_told_when_to_come_again_and_others_are_answered() {
    let scene = guarded(Some(12)).await;
    let key = [("x-api-key", API_KEY)];
    for _ in 0..2 {
        let (status, _, _) = ask(&scene, "POST", "/embed", &key).await;
        assert_eq!(status, StatusCode::OK);
    }
    let (status, headers, body) = ask(&scene, "POST", "/embed", &key).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let after: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=6).contains(&after), "{after}");
    assert_eq!(body["error_type"], "Overloaded");
    let other = [("x-api-key", OTHER_API_KEY)];
    let (status, _, _) = ask(&scene, "POST", "/embed", &other).await;
    assert_eq!(status, StatusCode::OK, "each key has its own limit");
}
