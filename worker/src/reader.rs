//! The result lines of one output over HTTP: `GET /api/v1/jobs/{job}/results`, for whoever brings its token,
//! if it has one.
//!
//! Lines are JSON lines in the order of the parts. A page begins at an offset, and parts before it are
//! skipped by their counts, unread; whoever follows gets the lines of each shard once it is committed, up to
//! the end of the run. Lines pass through in small chunks; nothing is held for whoever reads slowly.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::TryStreamExt;
use millrace_edge::{Listener, ServeOptions, Token, serve};
use millrace_protocol::manifest::LivePart;
use millrace_telemetry::chain;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::output::{self, Follower, OutputError, Visible};
use crate::store::Location;

/// Lines of a page, where a request does not say.
const LIMIT: u64 = 1_000;

/// Most lines of a page.
const LIMIT_MAX: u64 = 10_000;

/// How often it is looked for more shards.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Requests under way at a time: each holds some hundred kilobytes of a part.
const REQUESTS_MAX: usize = 32;

/// When whoever is one too many may come again.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Bytes of lines that are gathered before they are sent.
const CHUNK_BYTES: usize = 64 << 10;

/// Chunks that wait for whoever reads them.
const CHUNKS_MAX: usize = 2;

/// How many lines there are in all, as far as they can be seen.
const TOTAL: &str = "millrace-total";

/// Whether there will be no more of them.
const FINISHED: &str = "millrace-finished";

/// Where the next page begins; absent on the last one.
const NEXT_OFFSET: &str = "millrace-next-offset";

/// Whose results are read, and by whom.
pub struct ReaderOptions {
    /// The output.
    pub output: Location,
    /// Name of its job.
    pub job: String,
    /// What requests must bring; nothing where only this machine is answered.
    pub token: Option<Token>,
}

struct Reader {
    options: ReaderOptions,
    requests: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Answers requests for results. What is under way ends when `stop` is cancelled.
pub fn routes(options: ReaderOptions, stop: CancellationToken) -> Router {
    let reader = Arc::new(Reader {
        options,
        requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        stop,
    });
    Router::new()
        .route("/api/v1/jobs/{job}/results", get(results))
        .with_state(reader)
}

/// Answers until `stop` is cancelled, and ends what is under way.
pub async fn listen(listener: TcpListener, options: ReaderOptions, stop: CancellationToken) {
    let routes = routes(options, stop.clone()).route("/health", get(|| async { StatusCode::OK }));
    let bounds = ServeOptions {
        connections_max: 2 * REQUESTS_MAX,
        header_deadline: Duration::from_secs(30),
        write_deadline: Duration::from_secs(60),
        drain_deadline: Duration::from_secs(5),
    };
    serve(
        Listener::Tcp(listener),
        routes,
        bounds,
        stop.cancelled_owned(),
    )
    .await;
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("bring the token of these results: Authorization: Bearer TOKEN")]
    Unknown,
    #[error("these are the results of the job {0:?}")]
    OtherJob(String),
    #[error("{0}")]
    Query(String),
    #[error("too many read at a time; come again in a moment")]
    Busy,
    #[error("the job has no results yet: its run is not planned")]
    NotPlanned,
    #[error("the output cannot be read")]
    Output(#[source] OutputError),
}

async fn results(
    State(reader): State<Arc<Reader>>,
    Path(job): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let answer = answer(reader, &job, query.as_deref().unwrap_or_default(), &headers);
    match answer.await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn answer(
    reader: Arc<Reader>,
    job: &str,
    query: &str,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let ReaderOptions {
        output: location,
        job: own,
        token,
    } = &reader.options;
    if token.as_ref().is_some_and(|token| !token.is_in(headers)) {
        return Err(Refusal::Unknown);
    }
    if job != own {
        return Err(Refusal::OtherJob(own.clone()));
    }
    let asked = Asked::parse(query)?;
    let permit = Arc::clone(&reader.requests).try_acquire_owned();
    let permit = permit.map_err(|_| Refusal::Busy)?;
    let Asked {
        offset,
        limit,
        follow,
    } = asked;
    if follow {
        let sending = |lines| follow_lines(reader.clone(), limit, lines);
        return Ok(body(permit, sending).into_response());
    }
    let visible = output::visible(location).await;
    let Visible { parts, finished } = visible.map_err(|error| match error {
        OutputError::NotAnOutput { .. } => Refusal::NotPlanned,
        error => Refusal::Output(error),
    })?;
    let total = parts.iter().map(lines_of).sum::<u64>();
    let limit = limit.unwrap_or(LIMIT);
    let next = offset.saturating_add(limit);
    let (parts, skip) = from(parts, offset);
    let sending = |lines: Lines| async move {
        let location = &reader.options.output;
        tokio::select! {
            _ = send(location, &parts, skip, Some(limit), lines) => {}
            () = reader.stop.cancelled() => {}
        }
    };
    let mut response = body(permit, sending).into_response();
    let headers = response.headers_mut();
    headers.insert(TOTAL, total.into());
    let finished = if finished { "true" } else { "false" };
    headers.insert(FINISHED, header::HeaderValue::from_static(finished));
    if next < total {
        headers.insert(NEXT_OFFSET, next.into());
    }
    Ok(response)
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    /// Lines before the first one.
    offset: u64,
    /// Most lines; a page has a bound of its own.
    limit: Option<u64>,
    /// Whether to stay until the run is over.
    follow: bool,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, Refusal> {
        let mut asked = Self {
            offset: 0,
            limit: None,
            follow: false,
        };
        let refuse = |message: String| Err(Refusal::Query(message));
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match (name.as_ref(), value.parse::<u64>(), value.as_ref()) {
                ("offset", Ok(offset), _) => asked.offset = offset,
                ("limit", Ok(limit), _) => asked.limit = Some(limit),
                ("follow", _, "true" | "1" | "") => asked.follow = true,
                ("follow", _, "false" | "0") => asked.follow = false,
                ("offset" | "limit", Err(_), _) => {
                    return refuse(format!("{name}: {value:?} is no whole number"));
                }
                ("follow", ..) => return refuse(format!("follow: {value:?} is not true or false")),
                _ => return refuse(format!("{name}: give offset, limit or follow")),
            }
        }
        match asked {
            Self { limit: Some(0), .. } => refuse("limit: ask for at least one line".to_owned()),
            Self {
                follow: true,
                offset: 1..,
                ..
            } => refuse("offset: whoever follows begins at the first line".to_owned()),
            Self {
                follow: false,
                limit: Some(limit),
                ..
            } if limit > LIMIT_MAX => {
                refuse(format!("limit: a page has at most {LIMIT_MAX} lines"))
            }
            asked => Ok(asked),
        }
    }
}

/// Result lines of a part.
fn lines_of(part: &LivePart) -> u64 {
    part.commit.rows.succeeded
}

/// The parts from that on which holds the line at `offset`, and the lines of it before that one.
fn from(parts: Vec<LivePart>, offset: u64) -> (Vec<LivePart>, u64) {
    let mut skip = offset;
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next_if(|part| lines_of(part) <= skip) {
        skip -= lines_of(&part);
    }
    (parts.collect(), skip)
}

type Chunk = Result<Bytes, OutputError>;
type Lines = mpsc::Sender<Chunk>;

/// A body of JSON lines that `sending` sends. What breaks off in the middle ends the connection, so that
/// nobody takes it for the end.
fn body<F>(permit: OwnedSemaphorePermit, sending: impl FnOnce(Lines) -> F) -> impl IntoResponse
where
    F: Future<Output = ()> + Send + 'static,
{
    let (lines, chunks) = mpsc::channel(CHUNKS_MAX);
    let sending = sending(lines);
    tokio::spawn(async move {
        sending.await;
        drop(permit);
    });
    let chunks = futures::stream::unfold(chunks, |mut chunks| async move {
        Some((chunks.recv().await?, chunks))
    });
    let kind = [(header::CONTENT_TYPE, "application/jsonl")];
    (kind, Body::from_stream(chunks))
}

/// Sends the lines of parts, up to a limit, after `skip` of them. Returns how many; nothing if whoever
/// reads went away, or if the output cannot be read, which they are told.
async fn send(
    output: &Location,
    parts: &[LivePart],
    mut skip: u64,
    limit: Option<u64>,
    lines: Lines,
) -> Option<u64> {
    let mut results = std::pin::pin!(output::results(output, parts));
    let (mut sent, mut chunk) = (0, Vec::new());
    while limit.is_none_or(|limit| sent < limit) {
        let line = match results.try_next().await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the results cannot be read");
                lines.send(Err(error)).await.ok();
                return None;
            }
        };
        if skip > 0 {
            skip -= 1;
            continue;
        }
        chunk.extend(line.as_bytes());
        chunk.push(b'\n');
        sent += 1;
        if chunk.len() >= CHUNK_BYTES {
            let full = std::mem::take(&mut chunk);
            lines.send(Ok(full.into())).await.ok()?;
        }
    }
    if !chunk.is_empty() {
        lines.send(Ok(chunk.into())).await.ok()?;
    }
    Some(sent)
}

/// Sends the lines of each shard once it is committed, until the run is over.
async fn follow_lines(reader: Arc<Reader>, mut limit: Option<u64>, lines: Lines) {
    let output = &reader.options.output;
    let mut follower = Follower::default();
    let following = async {
        loop {
            let Visible { parts, finished } = match follower.look(output).await {
                Ok(visible) => visible,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the output cannot be looked at");
                    lines.send(Err(error)).await.ok();
                    return;
                }
            };
            let Some(sent) = send(output, &parts, 0, limit, lines.clone()).await else {
                return;
            };
            limit = limit.map(|limit| limit - sent);
            if finished || limit == Some(0) {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = lines.closed() => return,
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = reader.stop.cancelled() => {}
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Refusal::Unknown => StatusCode::UNAUTHORIZED,
            Refusal::OtherJob(_) | Refusal::NotPlanned => StatusCode::NOT_FOUND,
            Refusal::Query(_) => StatusCode::BAD_REQUEST,
            Refusal::Busy => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Output(error) => {
                tracing::warn!(error = %chain(error), "the output cannot be read");
                StatusCode::BAD_GATEWAY
            }
        };
        let error = json!({"error": {"message": self.to_string()}});
        let mut response = (status, Json(error)).into_response();
        if matches!(self, Refusal::Busy) {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        response
    }
}

#[cfg(test)]
mod tests;
