//! A proxy between one client and an API server. It writes down what the client writes, and strikes
//! at one point of its choice: it kills the client, answers in the server's place, keeps an answer
//! back, or ends a watch. It never changes what it forwards.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::process::send;

/// How long a client sees nothing of a resource whose watch was cut.
const BLIND: Duration = Duration::from_millis(300);

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, Failure>>;

/// Where a proxy strikes, once. Numbers begin at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// At a write; renewals of Leases are none, nor is what only says again what was written there
    /// last.
    Write(usize, Strike),
    /// At an event of any watch: it is not delivered, the watch ends as one that is too old, and the
    /// client has to list anew after a while in which it saw nothing.
    Event(usize),
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// The client is killed before the server sees the write.
    KillBefore,
    /// The client is killed before it sees the answer.
    KillAfter,
    /// As [`Strike::KillAfter`], and whoever comes next is told at first what each list was when it
    /// was asked for the first time, as by an API server that lags behind.
    KillAfterAndLag,
    /// The server never sees the write, and the client gets this status instead.
    Refuse(u16),
    /// The server does what it was asked, and the client hears of a time-out.
    TimeOut,
}

/// A proxy on a loopback port; it ends when dropped.
pub struct ApiProxy {
    address: SocketAddr,
    state: Arc<State>,
    _listening: AbortOnDropHandle<()>,
}

struct State {
    upstream: Client,
    point: Option<Point>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    client: Option<i32>,
    writes: Vec<String>,
    /// When each write came, those that change nothing included.
    came: Vec<(String, Instant)>,
    /// What was written last, by method and path.
    last: HashMap<String, Bytes>,
    events: usize,
    has_struck: bool,
    /// Lists by path, as they were when first asked for.
    first_lists: HashMap<String, Bytes>,
    /// Paths whose first list is given out once more.
    lagging: Vec<String>,
}

impl ApiProxy {
    /// Starts a proxy to the server that `upstream` speaks with, with its rights.
    pub async fn start(upstream: Client, point: Option<Point>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the port");
        let state = Arc::new(State {
            upstream,
            point,
            seen: Mutex::default(),
        });
        let listening = tokio::spawn(listen(listener, state.clone()));
        Self {
            address,
            state,
            _listening: AbortOnDropHandle::new(listening),
        }
    }

    /// A kubeconfig that leads through this proxy.
    pub fn kubeconfig(&self) -> String {
        let address = self.address;
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: proxy\n\
             clusters: [{{name: proxy, cluster: {{server: 'http://{address}'}}}}]\n\
             users: [{{name: proxy, user: {{}}}}]\n\
             contexts: [{{name: proxy, context: {{cluster: proxy, user: proxy}}}}]\n"
        )
    }

    /// Names the process that is killed where the point says so.
    pub fn aim(&self, client: i32) {
        self.state.seen().client = Some(client);
    }

    /// How many requests to write there were so far, those that change nothing included.
    pub fn requests(&self) -> usize {
        self.state.seen().came.len()
    }

    /// What the client wrote so far: method and path below its namespace.
    pub fn writes(&self) -> Vec<String> {
        self.state.seen().writes.clone()
    }

    /// When each request for this write came, those that change nothing included.
    pub fn instants(&self, write: &str) -> Vec<Instant> {
        let seen = self.state.seen();
        let came = seen.came.iter().filter(|(other, _)| other == write);
        came.map(|(_, at)| *at).collect()
    }

    /// How many events of watches the client was sent so far.
    pub fn events(&self) -> usize {
        self.state.seen().events
    }

    /// Whether the client came to the point.
    pub fn has_struck(&self) -> bool {
        self.state.seen().has_struck
    }
}

impl State {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a write down. Says what becomes of it.
    fn note(&self, write: String, body: &Bytes) -> Option<Strike> {
        let mut seen = self.seen();
        seen.came.push((write.clone(), Instant::now()));
        let before = seen.last.insert(write.clone(), body.clone());
        if before.as_ref() == Some(body) {
            return None;
        }
        seen.writes.push(write);
        match self.point {
            Some(Point::Write(number, strike)) if number == seen.writes.len() => {
                seen.has_struck = true;
                Some(strike)
            }
            _ => None,
        }
    }

    /// Counts an event. Says whether it is lost.
    fn loses_event(&self) -> bool {
        let mut seen = self.seen();
        seen.events += 1;
        let is_lost = self.point == Some(Point::Event(seen.events));
        seen.has_struck |= is_lost;
        is_lost
    }

    fn kill(&self) -> Failure {
        if let Some(client) = self.seen().client.take() {
            send(client, libc::SIGKILL);
        }
        "the client is killed".into()
    }

    fn lag(&self) {
        let mut seen = self.seen();
        seen.lagging = seen.first_lists.keys().cloned().collect();
    }

    /// The list to answer with: the fresh one, or the first one while the server lags.
    fn list(&self, path: String, fresh: Bytes) -> Bytes {
        self.seen().list(path, fresh)
    }
}

impl Seen {
    fn list(&mut self, path: String, fresh: Bytes) -> Bytes {
        let lags = self.lagging.iter().position(|lagging| *lagging == path);
        let first = self
            .first_lists
            .entry(path)
            .or_insert_with(|| fresh.clone());
        match lags {
            Some(index) => {
                self.lagging.swap_remove(index);
                first.clone()
            }
            None => fresh,
        }
    }
}

async fn listen(listener: TcpListener, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, state.clone()));
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| answer(state.clone(), request));
    // A client that was killed, or gets no answer, is what this is for.
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

/// Answers a request; an error ends the connection without an answer.
async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Failure> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    // The client behind this proxy names the server itself.
    parts.headers.remove(hyper::header::HOST);
    let body = body.collect().await?.to_bytes();
    let is_read = parts.method == Method::GET;
    let is_watch = is_read && query.contains("watch=true");
    // Those of observers name what they look for, and are never old.
    let is_list = is_read && query.contains("limit=");
    let strike = if is_read || path.contains("/leases") {
        None
    } else {
        state.note(
            format!("{} {}", parts.method, below_namespace(&path)),
            &body,
        )
    };
    match strike {
        Some(Strike::KillBefore) => return Err(state.kill()),
        Some(Strike::Refuse(code)) => return Ok(refusal(code)),
        _ => {}
    }
    let request = Request::from_parts(parts, Body::from(body));
    let answer = state.upstream.send(request).await?;
    if is_watch {
        return Ok(answer.map(|body| watch(state, body)));
    }
    let (parts, body) = answer.into_parts();
    let mut bytes = body.collect().await?.to_bytes();
    match strike {
        Some(Strike::KillAfter) => return Err(state.kill()),
        Some(Strike::KillAfterAndLag) => {
            state.lag();
            return Err(state.kill());
        }
        Some(Strike::TimeOut) => return Ok(refusal(504)),
        _ => {}
    }
    if is_list {
        bytes = state.list(path, bytes);
    }
    let mut answer = Response::from_parts(parts, whole(bytes));
    // What is sent may be another list, of another length.
    answer.headers_mut().remove(hyper::header::CONTENT_LENGTH);
    Ok(answer)
}

/// The events of a watch, up to one that is lost.
fn watch(state: Arc<State>, body: Body) -> UnsyncBoxBody<Bytes, Failure> {
    let lines = body.into_data_stream().map_err(std::io::Error::other);
    let lines = lines.into_async_read().lines().boxed();
    let events = futures::stream::unfold(Some((state, lines)), |watching| async {
        let (state, mut lines) = watching?;
        let line = lines.next().await?.ok()?;
        let is_bookmark = line.starts_with(r#"{"type":"BOOKMARK""#);
        if is_bookmark || !state.loses_event() {
            return Some((line, Some((state, lines))));
        }
        tokio::time::sleep(BLIND).await;
        let gone = json!({"type": "ERROR", "object": status(410, "Expired")});
        Some((gone.to_string(), None))
    });
    let frames = events.map(|line| Ok(Frame::data(Bytes::from(line + "\n"))));
    StreamBody::new(frames).boxed_unsync()
}

/// What the server would say that could not do what it was asked.
fn refusal(code: u16) -> Answer {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "InternalError",
    };
    let answer = Response::builder()
        .status(code)
        .header(hyper::header::CONTENT_TYPE, "application/json");
    let answer = match code {
        429 => answer.header(hyper::header::RETRY_AFTER, "1"),
        _ => answer,
    };
    let body = status(code, reason).to_string();
    answer.body(whole(body.into())).expect("a plain answer")
}

fn status(code: u16, reason: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "the proxy of a test says so", "reason": reason, "code": code,
    })
}

fn whole(bytes: Bytes) -> UnsyncBoxBody<Bytes, Failure> {
    let never = |never: Infallible| match never {};
    Full::new(bytes).map_err(never).boxed_unsync()
}

/// `batchjobs/embed/status` of a whole path.
fn below_namespace(path: &str) -> &str {
    let below = path.split_once("/namespaces/");
    let below = below.and_then(|(_, below)| below.split_once('/'));
    below.map_or(path, |(_, below)| below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_fresh_except_for_the_one_that_lags() {
        let mut seen = Seen::default();
        let asked = |seen: &mut Seen, fresh: &'static str| {
            let list = seen.list("/pods".to_owned(), Bytes::from(fresh));
            String::from_utf8(list.to_vec()).unwrap()
        };
        assert_eq!(asked(&mut seen, "nothing"), "nothing");
        assert_eq!(asked(&mut seen, "one pod"), "one pod");
        seen.lagging = vec!["/pods".to_owned()];
        assert_eq!(asked(&mut seen, "two pods"), "nothing");
        assert_eq!(asked(&mut seen, "two pods"), "two pods");
    }
}
