//! The result lines of one output over HTTP: `GET /api/v1/jobs/{job}/results`, for whoever brings its token.
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
    /// What requests must bring.
    pub token: Token,
}

struct Reader {
    options: ReaderOptions,
    requests: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Answers until `stop` is cancelled, and ends what is under way.
pub async fn listen(listener: TcpListener, options: ReaderOptions, stop: CancellationToken) {
    let reader = Arc::new(Reader {
        options,
        requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        stop: stop.clone(),
    });
    let routes = Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/api/v1/jobs/{job}/results", get(results))
        .with_state(reader);
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
    if !token.is_in(headers) {
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
        (status, Json(error)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::layout;
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::store::{LinkLocal, Stores};

    const SUCCEEDED: [u64; 4] = [3, 0, 2, 5];

    /// Writes the parts of a finished output, whose lines count from 0.
    fn finish(folder: &std::path::Path) {
        let mut lines = 0..;
        let part = |(shard, succeeded): (usize, u64)| -> Value {
            let path = layout::part(1, shard as u32, "a", false);
            let text = lines.by_ref().take(succeeded as usize);
            let text: String = text.map(|line: u64| format!("{line}\n")).collect();
            std::fs::create_dir_all(folder.join("parts")).unwrap();
            std::fs::write(folder.join(&path), text).unwrap();
            json!({
                "run": 1, "range": {"input": 0, "kind": "bytes", "start": 0, "end": 1},
                "commit": {
                    "shard": shard, "epoch": 1, "attempt": "a", "tokens": 0,
                    "part": (succeeded > 0).then_some(path),
                    "rows": {"succeeded": succeeded, "failed": 0, "skipped": 0},
                },
            })
        };
        let parts: Vec<Value> = SUCCEEDED.into_iter().enumerate().map(part).collect();
        let manifest = json!({
            "version": 1, "run": 1, "specSha256": "00", "answersSha256": "00", "complete": true,
            "totals": {"rows": {"succeeded": 10, "failed": 0, "skipped": 0}, "tokens": 0},
            "inputs": [], "parts": parts, "failedShards": [], "models": [],
            "finishedAt": "2026-01-01T00:00:00Z",
        });
        std::fs::write(folder.join(layout::MANIFEST), manifest.to_string()).unwrap();
    }

    struct Scene {
        folder: tempfile::TempDir,
        address: std::net::SocketAddr,
        stop: CancellationToken,
    }

    impl Scene {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let uri = format!("file://{}", folder.path().display());
            let stores = Stores::from_env(LinkLocal::Allowed);
            let options = ReaderOptions {
                output: stores.open(&uri).unwrap(),
                job: "embed".to_owned(),
                token: Token::new(b"s3cret").unwrap(),
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            tokio::spawn(listen(listener, options, stop.clone()));
            Self {
                folder,
                address,
                stop,
            }
        }

        /// Asks, and leaves the answer to be read.
        async fn ask(&self, job: &str, query: &str, token: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!(
                "GET /api/v1/jobs/{job}/results?{query} HTTP/1.0\r\n\
                 authorization: Bearer {token}\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        }

        /// Head and body.
        async fn get(&self, job: &str, query: &str, token: &str) -> (String, String) {
            let mut stream = self.ask(job, query, token).await;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.to_owned(), body.to_owned())
        }
    }

    fn lines(numbers: std::ops::Range<u64>) -> String {
        numbers.map(|line| format!("{line}\n")).collect()
    }

    #[tokio::test]
    async fn pages_side_by_side_hold_each_line_once_and_in_order() {
        let scene = Scene::new().await;
        finish(scene.folder.path());
        for limit in 1..=11 {
            let mut read = String::new();
            let mut next = Some(0);
            while let Some(offset) = next {
                let query = format!("offset={offset}&limit={limit}");
                let (head, body) = scene.get("embed", &query, "s3cret").await;
                assert!(head.contains("millrace-total: 10"), "{head}");
                assert!(head.contains("millrace-finished: true"), "{head}");
                read += &body;
                let named = head.lines();
                let named = named.filter_map(|line| line.strip_prefix("millrace-next-offset: "));
                next = named.map(|offset| offset.parse::<u64>().unwrap()).next();
            }
            assert_eq!(read, lines(0..10), "{limit}");
        }
        let (_, beyond) = scene.get("embed", "offset=10", "s3cret").await;
        assert_eq!(beyond, "");
    }

    #[tokio::test]
    async fn results_are_for_whoever_brings_the_token_of_the_job() {
        let scene = Scene::new().await;
        for (job, query, token, status) in [
            ("embed", "", "guess", "401"),
            ("other", "", "guess", "401"),
            ("other", "", "s3cret", "404"),
            ("embed", "limit=0", "s3cret", "400"),
            ("embed", "", "s3cret", "404"),
        ] {
            let (head, body) = scene.get(job, query, token).await;
            assert_eq!(
                head.split(' ').nth(1),
                Some(status),
                "{job} {query}: {body}"
            );
        }
    }

    #[tokio::test]
    async fn whoever_follows_gets_every_line_once_the_run_is_over() {
        let scene = Scene::new().await;
        let following = scene.get("embed", "follow=true", "s3cret");
        let finishing = async { finish(scene.folder.path()) };
        let ((_, all), ()) = futures::join!(following, finishing);
        assert_eq!(all, lines(0..10));
        let (_, some) = scene.get("embed", "follow=true&limit=4", "s3cret").await;
        assert_eq!(some, lines(0..4));
    }

    #[tokio::test]
    async fn whoever_follows_is_let_go_when_the_reader_is_to_stop() {
        let scene = Scene::new().await;
        let mut stream = scene.ask("embed", "follow=true", "s3cret").await;
        let begun = stream.read(&mut [0; 512]).await.unwrap();
        assert!(begun > 0);
        scene.stop.cancel();
        assert_eq!(stream.read(&mut [0; 512]).await.unwrap(), 0);
    }

    fn check(query: &str, expected: Result<(u64, Option<u64>, bool), &str>) {
        let asked = Asked::parse(query).map_err(|refusal| refusal.to_string());
        let asked = asked.map(|asked| (asked.offset, asked.limit, asked.follow));
        assert_eq!(asked, expected.map_err(str::to_owned), "{query}");
    }

    #[test]
    fn a_query_is_refused_by_the_name_of_what_is_wrong() {
        check("", Ok((0, None, false)));
        check("offset=20&limit=10", Ok((20, Some(10), false)));
        check("follow=true&limit=1000000", Ok((0, Some(1_000_000), true)));
        check("limit=ten", Err("limit: \"ten\" is no whole number"));
        check("limit=0", Err("limit: ask for at least one line"));
        check("limit=10001", Err("limit: a page has at most 10000 lines"));
        check("page=1", Err("page: give offset, limit or follow"));
        check(
            "follow=maybe",
            Err("follow: \"maybe\" is not true or false"),
        );
        check(
            "follow=true&offset=3",
            Err("offset: whoever follows begins at the first line"),
        );
    }
}
