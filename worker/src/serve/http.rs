//! What the kubelet and Prometheus ask of a service's worker.

use std::time::Duration;

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

/// How long a pod that is about to go still serves: nobody is told at once that it takes no more
/// requests.
const UNROUTED_AFTER: Duration = Duration::from_secs(5);

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

/// Answers once every lease is released and nobody sends requests here any more. A hook of the container
/// that computes calls this first, since this container outlives it.
async fn drain(State(door): State<Door>) -> StatusCode {
    door.drain.cancel();
    tokio::join!(door.drained.cancelled(), tokio::time::sleep(UNROUTED_AFTER));
    StatusCode::OK
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_drained_serves_until_nobody_is_sent_to_it() {
        let (door, begun) = (Door::default(), Instant::now());
        let later = door.clone();
        tokio::spawn(async move {
            later.drain.cancelled().await;
            later.drained.cancel();
        });
        assert_eq!(drain(State(door.clone())).await, StatusCode::OK);
        assert_eq!(begun.elapsed(), UNROUTED_AFTER);
        assert_eq!(ready(State(door)).await, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_drained_stays_until_its_leases_are_released() {
        let (door, begun) = (Door::default(), Instant::now());
        let (later, slow) = (door.clone(), UNROUTED_AFTER * 3);
        tokio::spawn(async move {
            tokio::time::sleep(slow).await;
            later.drained.cancel();
        });
        drain(State(door)).await;
        assert_eq!(begun.elapsed(), slow);
    }
}
