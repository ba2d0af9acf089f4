//! What the kubelet, Prometheus and autoscalers ask of the operator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use millrace_telemetry::OPEN_METRICS;
use serde_json::json;
use tokio::net::TcpListener;

use crate::context::Context;
use crate::metrics::{self, Now};
use crate::objects::Objects;

/// How long a question waits for a process that has not yet seen all objects.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a process shows of itself; cheap to clone.
#[derive(Clone)]
pub struct Shown {
    /// What visits work with, and count in.
    pub ctx: Arc<Context>,
    /// Whether this process leads.
    pub leads: Arc<AtomicBool>,
    /// All objects of both kinds, as seen by a process that waits until it leads.
    pub standing_by: Arc<OnceLock<Objects>>,
}

impl Shown {
    /// A process that does not lead yet.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self {
            ctx,
            leads: Arc::default(),
            standing_by: Arc::default(),
        }
    }

    /// All objects, as seen by a process that leads or stands by; nothing where it has not yet seen all
    /// of them and does not soon.
    pub async fn objects(&self) -> Option<&Objects> {
        let objects = self.ctx.objects.get().or(self.standing_by.get())?;
        let synced = tokio::time::timeout(PATIENCE, objects.synced()).await;
        synced.is_ok().then_some(objects)
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
    let Shown { ctx, leads, .. } = shown;
    let now = Now {
        leads: leads.load(Ordering::Relaxed),
        leases_available: ctx.leases_answer().await,
        objects: ctx.objects.get(),
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
    let Some(objects) = shown.objects().await else {
        let error = "this process has just begun, and knows no services yet".to_owned();
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

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::config::Options;

    fn shown() -> Shown {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let options = Options::of_tests(&["--redis-url=redis://127.0.0.1:1"]);
        let client = kube::Client::try_from(config).unwrap();
        Shown::new(Arc::new(Context::new(client, options).unwrap()))
    }

    fn objects() -> Objects {
        let service = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "embed", "namespace": "tenant"},
            "spec": {"models": []}, "status": {"replicas": 2},
        });
        let mut services = Writer::default();
        services.apply_watcher_event(&Event::Apply(serde_json::from_value(service).unwrap()));
        Objects {
            jobs: Writer::default().as_reader(),
            services: services.as_reader(),
        }
    }

    /// Status and body.
    async fn get(shown: &Shown, path: &str) -> (u16, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listening = tokio::spawn(listen(listener, shown.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: operator\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        listening.abort();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    #[tokio::test]
    async fn an_autoscaler_is_told_the_backlog_of_a_service_by_whoever_has_seen_all_objects() {
        let path = "/v1/namespaces/tenant/inferenceservices/embed/backlog";
        let (leader, standby) = (shown(), shown());
        assert_eq!(get(&leader, path).await.0, 503);
        assert!(leader.ctx.objects.set(objects()).is_ok());
        assert!(standby.standing_by.set(objects()).is_ok());
        let told = (200, r#"{"shards":0,"replicas":2}"#.to_owned());
        assert_eq!(get(&leader, path).await, told);
        assert_eq!(get(&standby, path).await, told);
        let (status, body) = get(&leader, &path.replace("embed", "other")).await;
        assert_eq!(status, 404);
        assert!(body.starts_with(r#"{"error":"#), "{body}");
    }

    #[tokio::test]
    async fn no_backlog_is_told_before_all_jobs_were_seen() {
        let standby = shown();
        // It is never ready, since nobody says what there is.
        let jobs = Writer::default();
        let half = Objects {
            jobs: jobs.as_reader(),
            ..objects()
        };
        assert!(standby.standing_by.set(half).is_ok());
        let path = "/v1/namespaces/tenant/inferenceservices/embed/backlog";
        assert_eq!(get(&standby, path).await.0, 503);
    }

    #[tokio::test]
    async fn a_scrape_is_answered_while_the_leases_are_away() {
        let (status, body) = get(&shown(), "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("millrace_leases_available 0\n"), "{body}");
    }
}
