//! `millrace run --serve`: tells over HTTP how far the run is, to whoever asks once and to whoever
//! stays, and its results.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use futures::Stream;
use millrace_edge::{Listener, ServeOptions, Token, serve, wants_events};
use millrace_protocol::plan::RunNumber;
use millrace_protocol::progress::{JobProgress, Phase};
use millrace_worker::job::CheckedJob;
use millrace_worker::reader::{self, ReaderOptions};
use millrace_worker::run::RunEnd;
use millrace_worker::store::Stores;
use millrace_worker::work::progress::Progress;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::display::Rates;

/// How often the news is new.
const INTERVAL: Duration = Duration::from_secs(1);

/// Bounds of those who ask. Whoever stays has a connection of their own.
const SERVE: ServeOptions = ServeOptions {
    connections_max: 64,
    header_deadline: Duration::from_secs(30),
    write_deadline: Duration::from_secs(30),
    // How long whoever stays has to take the last news.
    drain_deadline: Duration::from_secs(2),
};

/// Holds the token in the place of a file.
const TOKEN_VARIABLE: &str = "MILLRACE_SERVE_TOKEN";

/// Where a run tells how far it is.
#[derive(Debug, Args)]
pub struct BoardArgs {
    /// Address at which to tell how far the run is, such as 127.0.0.1:8088, for as long as it lasts:
    /// GET /api/v1/jobs/NAME/progress answers JSON, or server-sent events where these are accepted,
    /// and /api/v1/jobs/NAME/results the lines of committed shards. An address that other machines
    /// reach needs a token.
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
    /// File with a token that requests to the address of --serve must bring, as Authorization: Bearer
    /// TOKEN. The environment variable MILLRACE_SERVE_TOKEN holds the token itself.
    #[arg(long, env = "MILLRACE_SERVE_TOKEN_FILE", value_name = "PATH")]
    serve_token_file: Option<PathBuf>,
}

/// Where a board listens, and whom it answers.
pub struct BoardOptions {
    address: SocketAddr,
    /// What requests must bring, if anything.
    token: Option<Token>,
}

impl BoardArgs {
    /// The board that is asked for, if one is. Without a token it is for this machine alone.
    pub fn options(self) -> anyhow::Result<Option<BoardOptions>> {
        let Self {
            serve,
            serve_token_file,
        } = self;
        let Some(address) = serve else {
            return Ok(None);
        };
        let token = match serve_token_file {
            Some(path) => {
                Some(Token::read(&path).with_context(|| {
                    format!("--serve-token-file: no token in {}", path.display())
                })?)
            }
            None => match std::env::var_os(TOKEN_VARIABLE) {
                Some(token) => Some(Token::new(token.as_encoded_bytes()).context(TOKEN_VARIABLE)?),
                None => None,
            },
        };
        anyhow::ensure!(
            token.is_some() || address.ip().is_loopback(),
            "--serve: other machines reach {address}; name a file with a token by \
             --serve-token-file, or set {TOKEN_VARIABLE}, or serve at 127.0.0.1"
        );
        Ok(Some(BoardOptions { address, token }))
    }
}

/// Where the news of a job stands. The server behind it ends with it.
pub struct Board {
    news: Arc<watch::Sender<JobProgress>>,
    server: JoinHandle<bool>,
}

/// What requests are answered from.
#[derive(Clone)]
struct Shown {
    news: Arc<watch::Sender<JobProgress>>,
    token: Option<Token>,
}

impl Board {
    /// Begins to listen.
    pub async fn open(
        options: BoardOptions,
        job: &CheckedJob,
        stores: &Stores,
    ) -> anyhow::Result<Self> {
        let BoardOptions { address, token } = options;
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("--serve: {address} cannot be had"))?;
        let path = format!("/api/v1/jobs/{}/progress", job.name);
        eprintln!("progress at http://{}{path}", listener.local_addr()?);
        let (news, _) = watch::channel(JobProgress {
            namespace: job.namespace.clone(),
            name: job.name.clone(),
            uid: None,
            run: job.run,
            phase: Phase::Preparing,
            reason: None,
            output: job.output.uri.clone(),
            progress: None,
            message: None,
        });
        let news = Arc::new(news);
        let results = ReaderOptions {
            output: stores.open(&job.output.uri)?,
            job: job.name.clone(),
            token: token.clone(),
        };
        let shown = Shown {
            news: Arc::clone(&news),
            token,
        };
        let routes = Router::new()
            .route("/api/v1/jobs/{name}/progress", get(progress))
            .with_state(shown)
            // Whoever follows is told the last line, and so has all of them when the board goes.
            .merge(reader::routes(results, CancellationToken::new()));
        let mut heard = news.subscribe();
        let over = async move {
            // An error is a board that is gone, which is an end too.
            heard.wait_for(|news| news.phase.is_end()).await.ok();
        };
        let server = tokio::spawn(serve(Listener::Tcp(listener), routes, SERVE, over));
        Ok(Self { news, server })
    }

    /// Tells of `progress` until it is dropped.
    pub async fn follow(&self, run: RunNumber, progress: &Progress) -> Infallible {
        let mut rates = Rates::new(progress);
        loop {
            let counts = rates.look(progress);
            self.news.send_modify(|news| {
                news.run = run;
                news.phase = Phase::Running;
                news.progress = Some(counts);
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
                    if let Some(counts) = &mut news.progress {
                        *counts = counts.finished(rows, manifest.failed_shards.len());
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
        server.await.ok();
    }
}

/// `GET /api/v1/jobs/{name}/progress`: JSON, or server-sent events for whoever accepts those.
async fn progress(
    State(Shown { news, token }): State<Shown>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if token.is_some_and(|token| !token.is_in(&headers)) {
        let message = "bring the token of this run: Authorization: Bearer TOKEN";
        let refused = refusal(StatusCode::UNAUTHORIZED, message);
        return ([(header::WWW_AUTHENTICATE, "Bearer")], refused).into_response();
    }
    let now = news.borrow().clone();
    if now.name != name {
        let message = format!("this is the run of the job {:?}", now.name);
        return refusal(StatusCode::NOT_FOUND, &message);
    }
    if wants_events(&headers) {
        let events = events(news.subscribe());
        return Sse::new(events)
            .keep_alive(KeepAlive::default())
            .into_response();
    }
    Json(now).into_response()
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let error = serde_json::json!({"error": {"message": message}});
    (status, Json(error)).into_response()
}

/// The news now, and whenever there is some, up to the end.
fn events(news: watch::Receiver<JobProgress>) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(Some((news, true)), |state| async move {
        let (mut news, is_first) = state?;
        if !is_first {
            news.changed().await.ok()?;
        }
        let now = news.borrow_and_update().clone();
        let data = serde_json::to_string(&now).expect("news is plain data");
        let event = Event::default().event(now.phase.event()).data(data);
        Some((Ok(event), (!now.phase.is_end()).then_some((news, false))))
    })
}
