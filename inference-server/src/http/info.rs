//! How the server is: `/health`, `/ready`, `/metrics`, `/info`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::header::CONTENT_TYPE;
use millrace_crds::inference_service::Task;
use millrace_models::model::Model;
use millrace_protocol::registry::CacheCounts;
use millrace_telemetry::OPEN_METRICS;
use serde::Serialize;

use crate::http::{app::App, error::ApiError};

/// 200 while the process is alive, loading and draining included.
pub async fn health() -> &'static str {
    "ok"
}

/// 200 while new requests are welcome.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.is_ready() {
        "ready".into_response()
    } else {
        ApiError::NotReady.into_response()
    }
}

/// OpenMetrics text.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], app.metrics.render()).into_response()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    version: &'static str,
    models: Vec<ModelInfo>,
    max_client_batch_size: usize,
    max_concurrent_requests: usize,
    auto_truncate: bool,
    cache: CacheCounts,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelInfo {
    name: String,
    task: Task,
    digest: String,
    dtype: String,
    device: String,
    max_length: usize,
}

impl From<&Model> for ModelInfo {
    fn from(model: &Model) -> Self {
        Self {
            name: model.name().to_owned(),
            task: model.task(),
            digest: model.digest().to_owned(),
            dtype: model.dtype().to_owned(),
            device: model.device().to_owned(),
            max_length: model.max_length(),
        }
    }
}

/// The models and the bounds a client should know.
pub async fn info(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let inference = app.inference()?;
    let info = Info {
        version: env!("CARGO_PKG_VERSION"),
        models: inference.models().iter().map(ModelInfo::from).collect(),
        max_client_batch_size: app.limits.client_batch_items_max,
        max_concurrent_requests: app.limits.concurrent_requests_max,
        auto_truncate: app.limits.auto_truncate,
        cache: app.metrics.cache_lookups.counts(),
    };
    Ok(Json(info).into_response())
}
