//! What the kubelet and Prometheus ask of a service's worker.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use millrace_telemetry::OPEN_METRICS;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How the kubelet and the worker tell each other of the end.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// Cancelled when the pod is about to go.
    pub drain: CancellationToken,
    /// Cancelled when nothing is leased any more.
    pub drained: CancellationToken,
    /// What the worker counts.
    pub metrics: Metrics,
}

/// Answers `/health`, `/ready`, `/drain` and `/metrics` for as long as the process lives.
pub async fn listen(listener: TcpListener, door: Door) -> std::io::Result<()> {
    let app = Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/ready", get(ready))
        .route("/drain", get(drain).post(drain))
        .route("/metrics", get(metrics))
        .with_state(door);
    axum::serve(listener, app).await
}

async fn ready(State(door): State<Door>) -> StatusCode {
    match door.drain.is_cancelled() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    }
}

/// OpenMetrics text.
async fn metrics(State(door): State<Door>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], door.metrics.render()).into_response()
}

/// Answers once every lease is released. A hook of the container that computes calls this first,
/// since this container outlives it.
async fn drain(State(door): State<Door>) -> StatusCode {
    door.drain.cancel();
    door.drained.cancelled().await;
    StatusCode::OK
}
