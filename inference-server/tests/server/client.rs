//! A small HTTP client: one connection per request unless a test writes bytes itself.

use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use millrace_protocol::wire::{ROWS_PATH, RowsReply, RowsRequest};
use serde_json::Value;
use tokio::net::UnixStream;

/// What the server said.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the answer is JSON")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request; an error if the connection broke before the answer was complete.
pub async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The connection ends when the sender is dropped, also when this future is.
    let driver = tokio::spawn(connection);
    let request = request(method, path, body)?;
    let response = sender.send_request(request).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(sender);
    let _ = driver.await;
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    })
}

fn request(
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "server")
        .body(Full::new(body.into()))
}

/// Sends one request, and gives its body as it comes.
pub async fn post_streamed(socket: &Path, path: &str, body: &Value) -> Incoming {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = request(Method::POST, path, body.to_string()).unwrap();
    sender.send_request(request).await.unwrap().into_body()
}

pub async fn get(socket: &Path, path: &str) -> Answer {
    send(socket, Method::GET, path, "")
        .await
        .expect("the server answers")
}

pub async fn post(socket: &Path, path: &str, body: &Value) -> Answer {
    send(socket, Method::POST, path, body.to_string())
        .await
        .expect("the server answers")
}

pub async fn post_rows(socket: &Path, models: &[&str], texts: &[&str]) -> Answer {
    let request = RowsRequest {
        models: models.iter().map(|model| model.to_string()).collect(),
        texts: texts.iter().map(|text| text.to_string()).collect(),
    };
    let body = rmp_serde::to_vec_named(&request).unwrap();
    send(socket, Method::POST, ROWS_PATH, body)
        .await
        .expect("the server answers")
}

pub async fn rows(socket: &Path, models: &[&str], texts: &[&str]) -> RowsReply {
    let answer = post_rows(socket, models, texts).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    rmp_serde::from_slice(&answer.body).expect("the answer is a rows reply")
}
