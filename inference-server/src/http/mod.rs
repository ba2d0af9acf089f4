//! The HTTP edge: what is asked for, in which shape, and what is refused before it costs anything.

mod analyze;
pub mod app;
mod body;
mod chunks;
mod error;
mod info;
pub mod keys;
mod online;
mod openai;
mod rows;

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use millrace_protocol::wire::{CHUNKS_PATH, ROWS_PATH};
use tracing::{Instrument, Span};

use crate::{
    http::{app::App, error::ApiError, keys::ApiKeys},
    trace,
};

/// All endpoints, the same over TCP and over the Unix socket; with `keys`, for those alone who bring
/// one.
pub fn router(app: Arc<App>, keys: Option<Arc<ApiKeys>>) -> Router {
    let router = Router::new()
        .route("/embed", post(online::embed))
        .route("/predict", post(online::predict))
        .route(openai::EMBEDDINGS, post(openai::embeddings))
        .route(analyze::ANALYZE, post(analyze::analyze))
        .route(analyze::BATCH_ANALYZE, post(analyze::batch_analyze))
        .route(analyze::STREAM_ANALYZE, post(analyze::stream_analyze))
        .route(analyze::ONE_MODEL, post(analyze::one_model))
        .route(ROWS_PATH, post(rows::rows))
        .route(CHUNKS_PATH, post(chunks::chunks))
        .route("/health", get(info::health))
        .route("/ready", get(info::ready))
        .route("/metrics", get(info::metrics))
        .route("/info", get(info::info))
        .fallback(|| async { ApiError::NoSuchEndpoint })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed });
    let router = match keys {
        Some(keys) => router.layer(middleware::from_fn_with_state(keys, keys::require)),
        None => router,
    };
    // Last, and so around all others: refusals are counted too.
    router
        .layer(middleware::from_fn_with_state(app.clone(), measure))
        .with_state(app)
}

/// Endpoints that answer texts. Their requests are traced.
const ANSWERING: [&str; 9] = [
    "/embed",
    "/predict",
    openai::EMBEDDINGS,
    analyze::ANALYZE,
    analyze::BATCH_ANALYZE,
    analyze::STREAM_ANALYZE,
    analyze::ONE_MODEL,
    ROWS_PATH,
    CHUNKS_PATH,
];

/// Endpoints that say how the server is.
const TELLING: [&str; 4] = ["/health", "/ready", "/metrics", "/info"];

/// Counts a request under the route it matched; paths nobody serves share one label. Requests for
/// answers are traced as well.
async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>();
    let among = |endpoints: &[&'static str]| {
        let route = route.map(MatchedPath::as_str);
        endpoints.iter().copied().find(|known| route == Some(known))
    };
    let answering = among(&ANSWERING);
    let endpoint = answering.or_else(|| among(&TELLING)).unwrap_or("other");
    let span = answering.map_or_else(Span::none, |endpoint| trace::request(endpoint, &request));
    let response = next.run(request).instrument(span.clone()).await;
    trace::note_status(&span, response.status());
    app.metrics
        .note_request(endpoint, response.status().as_u16(), started);
    response
}
