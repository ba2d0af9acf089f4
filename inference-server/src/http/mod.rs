//! The HTTP edge: what is asked for, in which shape, and what is refused before it costs anything.

pub mod app;
mod body;
mod error;
mod info;
mod online;
mod openai;
mod rows;
pub mod serve;
mod write_deadline;

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use millrace_protocol::wire::ROWS_PATH;
use tracing::{Instrument, Span};

use crate::{
    http::{app::App, error::ApiError},
    trace,
};

/// All endpoints, the same over TCP and over the Unix socket.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/embed", post(online::embed))
        .route("/predict", post(online::predict))
        .route("/v1/embeddings", post(openai::embeddings))
        .route(ROWS_PATH, post(rows::rows))
        .route("/health", get(info::health))
        .route("/ready", get(info::ready))
        .route("/metrics", get(info::metrics))
        .route("/info", get(info::info))
        .fallback(|| async { ApiError::NoSuchEndpoint })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(app.clone(), measure))
        .with_state(app)
}

/// Counts a request under the route it matched; paths nobody serves share one label. Requests for
/// answers are traced as well.
async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let endpoint = match request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str)
    {
        Some("/embed") => "/embed",
        Some("/predict") => "/predict",
        Some("/v1/embeddings") => "/v1/embeddings",
        Some(ROWS_PATH) => ROWS_PATH,
        Some("/health") => "/health",
        Some("/ready") => "/ready",
        Some("/metrics") => "/metrics",
        Some("/info") => "/info",
        _ => "other",
    };
    let span = match endpoint {
        "/embed" | "/predict" | "/v1/embeddings" | ROWS_PATH => trace::request(endpoint, &request),
        _ => Span::none(),
    };
    let response = next.run(request).instrument(span.clone()).await;
    trace::note_status(&span, response.status());
    app.metrics
        .note_request(endpoint, response.status().as_u16(), started);
    response
}
