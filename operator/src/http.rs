//! What the kubelet, Prometheus and autoscalers ask of the operator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use crate::context::Context;
use crate::metrics::{self, Now, OPEN_METRICS, Objects};

/// What a process shows of itself; cheap to clone.
#[derive(Clone)]
pub struct Shown {
    /// What visits work with, and count in.
    pub ctx: Arc<Context>,
    /// Whether this process leads.
    pub leads: Arc<AtomicBool>,
    /// The objects, once this process leads.
    pub objects: Arc<OnceLock<Objects>>,
}

impl Shown {
    /// A process that does not lead yet.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self {
            ctx,
            leads: Arc::default(),
            objects: Arc::default(),
        }
    }
}

/// Answers for as long as the process lives.
pub async fn listen(listener: TcpListener, shown: Shown) -> std::io::Result<()> {
    axum::serve(listener, router(shown)).await
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/ready", get(|| async { StatusCode::OK }))
        .route("/metrics", get(metrics))
        .route(
            "/v1/namespaces/{namespace}/inferenceservices/{name}/backlog",
            get(backlog),
        )
        .with_state(shown)
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let Shown {
        ctx,
        leads,
        objects,
    } = shown;
    let now = Now {
        leads: leads.load(Ordering::Relaxed),
        leases_available: ctx.leases_answer().await,
        objects: objects.get(),
    };
    let text = metrics::render(&ctx.visits, now);
    ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

/// What waits for a service, for autoscalers that ask by HTTP.
async fn backlog(
    State(shown): State<Shown>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let refuse = |status, error: String| (status, Json(json!({"error": error}))).into_response();
    let Some(objects) = shown.objects.get() else {
        let error = "this process does not lead, and knows no services".to_owned();
        return refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    };
    match objects.backlog(&namespace, &name) {
        Some(backlog) => Json(backlog).into_response(),
        None => {
            let error = format!("there is no InferenceService {name:?} in {namespace:?}");
            refuse(StatusCode::NOT_FOUND, error)
        }
    }
}
