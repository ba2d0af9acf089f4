//! How far a job is, for whoever may get the object: `GET …/progress` as JSON, and as server-sent events
//! for whoever stays.
//!
//! It is answered from this process's copies of the objects, also while it stands by, and never writes.
//! No answer holds a row or a key.

pub mod access;
mod follow;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use millrace_crds::BatchJob;
use millrace_edge::{Listener, ServeOptions, bearer, serve, wants_events};
use millrace_telemetry::chain;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::access::{Access, Denied, Object};
use self::follow::Follower;
use crate::batch_job::progress;
use crate::http::Shown;

/// Bounds of those who ask.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// Most streams at a time; whoever comes then is answered 429.
    pub streams_max: usize,
    /// Most connections at a time, those of streams among them; further ones wait.
    pub connections_max: usize,
}

impl Default for ApiLimits {
    fn default() -> Self {
        // A stream costs a few kilobytes, and one look at a copy in memory each second.
        Self {
            streams_max: 256,
            connections_max: 512,
        }
    }
}

/// What requests are answered with.
pub struct Api {
    shown: Shown,
    access: Access,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Answers until `stop` is cancelled, and ends the streams.
pub async fn listen(
    listener: TcpListener,
    shown: Shown,
    limits: ApiLimits,
    stop: CancellationToken,
) {
    let ApiLimits {
        streams_max,
        connections_max,
    } = limits;
    let api = Arc::new(Api {
        access: Access::new(shown.ctx.client.clone()),
        shown,
        streams: Arc::new(Semaphore::new(streams_max)),
        stop: stop.clone(),
    });
    let routes = Router::new()
        .route(
            "/api/v1/namespaces/{namespace}/jobs/{name}/progress",
            get(by_name),
        )
        .route("/api/v1/jobs/{uid}/progress", get(by_uid))
        .with_state(api);
    let options = ServeOptions {
        connections_max,
        header_deadline: Duration::from_secs(30),
        write_deadline: Duration::from_secs(30),
        drain_deadline: Duration::from_secs(2),
    };
    serve(
        Listener::Tcp(listener),
        routes,
        options,
        stop.cancelled_owned(),
    )
    .await;
}

/// A job as a path names it.
enum Named {
    InNamespace { namespace: String, name: String },
    ByUid(String),
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("there is no such job")]
    Missing,
    #[error("this process has just begun, and knows no jobs yet")]
    Starting,
    #[error("too many stay to be told; ask once, or come again later")]
    Streams,
}

async fn by_name(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    answer(api, Named::InNamespace { namespace, name }, headers).await
}

async fn by_uid(
    State(api): State<Arc<Api>>,
    Path(uid): Path<String>,
    headers: HeaderMap,
) -> Response {
    answer(api, Named::ByUid(uid), headers).await
}

async fn answer(api: Arc<Api>, named: Named, headers: HeaderMap) -> Response {
    let token = bearer(&headers).unwrap_or_default();
    let job = match find(&api, &named, token).await {
        Ok(job) => job,
        Err(refusal) => return refusal.into_response(),
    };
    if !wants_events(&headers) {
        return Json(progress::of(&job, &Time(Timestamp::now()))).into_response();
    }
    let Ok(permit) = Arc::clone(&api.streams).try_acquire_owned() else {
        return Refusal::Streams.into_response();
    };
    let follower = Follower::new(api, job, token.to_vec(), permit);
    Sse::new(follower.events())
        .keep_alive(KeepAlive::default())
        .into_response()
}

/// The job, for whoever may look: nobody else learns whether it is there.
async fn find(api: &Api, named: &Named, token: &[u8]) -> Result<Arc<BatchJob>, Refusal> {
    let objects = api.shown.objects().await.ok_or(Refusal::Starting)?;
    let job = match named {
        Named::InNamespace { namespace, name } => objects.job(namespace, name),
        Named::ByUid(uid) => objects.job_of_uid(uid),
    };
    let of_job = job.as_ref().map(|job| (job.namespace(), job.name_any()));
    let (namespace, name) = match (named, of_job) {
        (Named::InNamespace { namespace, name }, _) => (namespace.clone(), name.clone()),
        (Named::ByUid(_), Some((namespace, name))) => (namespace.unwrap_or_default(), name),
        // That there is none is for those to know who may look at all of them.
        (Named::ByUid(_), None) => (String::new(), String::new()),
    };
    let object = Object {
        namespace: &namespace,
        name: &name,
    };
    api.access.admit(token, object).await?;
    job.ok_or(Refusal::Missing)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Refusal::Denied(Denied::Unknown) => StatusCode::UNAUTHORIZED,
            Refusal::Denied(Denied::Forbidden) => StatusCode::FORBIDDEN,
            Refusal::Denied(Denied::Busy) | Refusal::Streams => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Denied(error @ (Denied::Away(_) | Denied::Slow)) => {
                tracing::warn!(error = %chain(error), "nobody can be let look");
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::Starting => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Missing => StatusCode::NOT_FOUND,
        };
        let error = json!({"error": {"message": self.to_string()}});
        let mut response = (status, Json(error)).into_response();
        let hint = match status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Some((header::RETRY_AFTER, "5"))
            }
            _ => None,
        };
        if let Some((name, value)) = hint {
            let value = header::HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        response
    }
}
