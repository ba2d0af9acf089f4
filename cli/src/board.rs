//! `millrace run --serve`: tells over HTTP how far the run is, to whoever asks once and to whoever
//! stays.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::Stream;
use millrace_protocol::plan::RunNumber;
use millrace_worker::job::CheckedJob;
use millrace_worker::run::RunEnd;
use millrace_worker::work::progress::Progress;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::display::{Rates, Shown};

/// How often the news is new.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long whoever stays has to take the last news.
const GOODBYE: Duration = Duration::from_secs(2);

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Phase {
    /// It is planned, or its server is about to be ready.
    Preparing,
    /// Its rows are worked off.
    Running,
    /// Every shard is committed.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// It was interrupted, and the same command goes on.
    Interrupted,
}

impl Phase {
    fn is_end(self) -> bool {
        !matches!(self, Phase::Preparing | Phase::Running)
    }
}

/// What is told of a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct News {
    namespace: String,
    name: String,
    run: RunNumber,
    phase: Phase,
    output: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Where the news of a job stands. The server behind it ends with it.
pub struct Board {
    news: Arc<watch::Sender<News>>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Board {
    /// Listens at `address`.
    pub async fn open(address: SocketAddr, job: &CheckedJob) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("--serve: {address} cannot be had"))?;
        let path = format!("/api/v1/jobs/{}/progress", job.name);
        eprintln!("progress at http://{}{path}", listener.local_addr()?);
        let (news, _) = watch::channel(News {
            namespace: job.namespace.clone(),
            name: job.name.clone(),
            run: job.run,
            phase: Phase::Preparing,
            output: job.output.uri.clone(),
            progress: None,
            message: None,
        });
        let news = Arc::new(news);
        let routes = Router::new()
            .route("/api/v1/jobs/{name}/progress", get(progress))
            .with_state(Arc::clone(&news));
        let mut heard = news.subscribe();
        let over = async move {
            // An error is a board that is gone, which is an end too.
            heard.wait_for(|news| news.phase.is_end()).await.ok();
        };
        let serving = axum::serve(listener, routes).with_graceful_shutdown(over);
        let server = tokio::spawn(serving.into_future());
        Ok(Self { news, server })
    }

    /// Tells of `progress` until it is dropped.
    pub async fn follow(&self, run: RunNumber, progress: &Progress) -> Infallible {
        let mut rates = Rates::new(progress);
        loop {
            let shown = rates.look(progress);
            self.news.send_modify(|news| {
                news.run = run;
                news.phase = Phase::Running;
                news.progress = Some(shown);
            });
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Tells how the job ended, to the last one who listens.
    pub async fn close(self, ended: &anyhow::Result<RunEnd>) {
        let Self { news, server } = self;
        news.send_modify(|news| {
            news.phase = match ended {
                Ok(RunEnd::Finished(manifest) | RunEnd::GivenUp(_, manifest)) => {
                    let rows = manifest.totals.rows;
                    if let Some(shown) = &mut news.progress {
                        *shown = shown.finished(rows, manifest.failed_shards.len());
                    }
                    match manifest.complete {
                        true => Phase::Succeeded,
                        false => Phase::Failed,
                    }
                }
                Ok(RunEnd::Stopped) => Phase::Interrupted,
                Err(error) => {
                    news.message = Some(format!("{error:#}"));
                    Phase::Failed
                }
            };
        });
        // Whoever does not take the last news in time has left.
        tokio::time::timeout(GOODBYE, server).await.ok();
    }
}

/// `GET /api/v1/jobs/{name}/progress`: JSON, or server-sent events for whoever accepts those.
async fn progress(
    State(news): State<Arc<watch::Sender<News>>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let now = news.borrow().clone();
    if now.name != name {
        let message = format!("this is the run of the job {:?}", now.name);
        let error = serde_json::json!({"error": {"message": message}});
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    }
    let accepted = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.contains("text/event-stream")) {
        let events = events(news.subscribe());
        return Sse::new(events)
            .keep_alive(KeepAlive::default())
            .into_response();
    }
    Json(now).into_response()
}

/// The news now, and whenever there is some, up to the end.
fn events(news: watch::Receiver<News>) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(Some((news, true)), |state| async move {
        let (mut news, is_first) = state?;
        if !is_first {
            news.changed().await.ok()?;
        }
        let now = news.borrow_and_update().clone();
        let is_end = now.phase.is_end();
        let kind = if is_end { "end" } else { "progress" };
        let data = serde_json::to_string(&now).expect("news is plain data");
        let event = Event::default().event(kind).data(data);
        Some((Ok(event), (!is_end).then_some((news, false))))
    })
}
