//! A server that says what a test wants it to say, over TCP.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// Largest request of a test.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A request, as far as a script looks at it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    /// Null where there was no body.
    pub body: Value,
}

/// What the server says.
pub enum Say {
    Json(Value),
    /// Whatever this is, with status 200.
    Text(String),
    Status(u16, Value),
    RetryAfter(u16, &'static str),
}

type Script = dyn Fn(&Asked, usize) -> Say + Send + Sync;

#[derive(Clone)]
struct Served {
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A server on a port of its own.
pub struct StandIn {
    url: String,
    served: Served,
    _serving: AbortOnDropHandle<std::io::Result<()>>,
}

impl StandIn {
    /// Says to each request what `script` makes of it and of how many with a body there were before.
    pub async fn start(script: impl Fn(&Asked, usize) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = Served {
            script: Arc::new(script),
            asked: Arc::default(),
        };
        let router = Router::new().fallback(answer).with_state(served.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            url,
            served,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The requests with a body so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.served.asked.lock().unwrap().clone()
    }
}

async fn answer(State(served): State<Served>, request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    let body = to_bytes(request.into_body(), BODY_BYTES_MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let asked = Asked { path, body };
    let before = {
        let mut all = served.asked.lock().unwrap();
        let before = all.len();
        if !asked.body.is_null() {
            all.push(asked.clone());
        }
        before
    };
    let status = |status| StatusCode::from_u16(status).unwrap();
    match (served.script)(&asked, before) {
        Say::Json(value) => value.to_string().into_response(),
        Say::Text(text) => text.into_response(),
        Say::Status(code, value) => (status(code), value.to_string()).into_response(),
        Say::RetryAfter(code, after) => (status(code), [("retry-after", after)]).into_response(),
    }
}
