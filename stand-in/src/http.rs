//! The endpoints: a call is let in or not, waits as long as a model would take, and is answered.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::answer::{self, Asked};
use crate::faults::Fate;
use crate::headers::limit_headers;
use crate::limits::{RateLimiter, Standing};
use crate::options::StandInOptions;
use crate::record::{Call, Record};
use crate::replies::{self, Said};
use crate::stream;
use crate::tls::{TlsListener, TlsOptions};

/// Largest request: 2,048 inputs of a few thousand tokens.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Words of a refusal.
const REFUSAL: &str = "I'm sorry, but I can't help with that.";

/// What all calls share.
pub struct Served {
    options: StandInOptions,
    started: Instant,
    state: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    limiter_of_key: HashMap<String, RateLimiter>,
    calls: Vec<Call>,
    calls_let_in: u64,
}

impl Served {
    pub fn new(options: StandInOptions) -> Self {
        Self {
            options,
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Certificate and key of TLS, and whether HTTP/1.1 is all that it speaks, if it speaks TLS.
    pub fn tls(&self) -> Option<(&Path, &Path, bool)> {
        let TlsOptions {
            tls_certificate,
            tls_key,
            http1_only,
        } = &self.options.tls;
        Some((
            tls_certificate.as_deref()?,
            tls_key.as_deref()?,
            *http1_only,
        ))
    }

    pub fn record(&self) -> Record {
        let calls = self.lock().calls.clone();
        Record { calls }
    }

    fn knows(&self, key: &str) -> bool {
        match &self.options.api_key {
            Some(expected) => expected == key,
            None => !key.is_empty(),
        }
    }

    /// Takes as long as a model would; what is too long for it is refused at once.
    async fn compute(&self, asked: &Asked, fate: Fate) {
        if fate != Fate::TooLong {
            let rows_ms = self.options.latency_per_row_ms * asked.rows.len() as u64;
            self.sleep_ms(self.options.latency_ms + rows_ms).await;
        }
    }

    /// Milliseconds since the start, as they pass for the API.
    fn now_ms(&self) -> u64 {
        (self.started.elapsed().as_secs_f64() * 1000.0 * self.options.time_factor) as u64
    }

    async fn sleep_ms(&self, ms: u64) {
        let real = Duration::from_secs_f64(ms as f64 / 1000.0 / self.options.time_factor);
        tokio::time::sleep(real).await;
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, index: usize, status: StatusCode) {
        let now_ms = self.now_ms();
        let call = &mut self.lock().calls[index];
        call.status = Some(status.as_u16());
        call.ended_ms = Some(now_ms);
    }
}

pub fn router(served: Arc<Served>) -> Router {
    let mut router = Router::new().route("/record", get(record));
    for api in [Api::Chat, Api::Responses, Api::Embeddings] {
        router = router.route(api.path(), endpoint(api));
    }
    router
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(served)
}

/// Port from which a connection came.
#[derive(Debug, Clone, Copy)]
pub struct Peer(u16);

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.remote_addr().port())
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Self(stream.remote_addr().port())
    }
}

/// How a call came.
struct Via {
    version: Version,
    peer: Peer,
}

impl<S: Send + Sync> FromRequestParts<S> for Via {
    type Rejection = <ConnectInfo<Peer> as FromRequestParts<S>>::Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let ConnectInfo(peer) = ConnectInfo::from_request_parts(parts, state).await?;
        Ok(Self {
            version: parts.version,
            peer,
        })
    }
}

/// What an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Chat,
    Responses,
    Embeddings,
}

impl Api {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

async fn record(State(served): State<Arc<Served>>) -> Json<Record> {
    Json(served.record())
}

fn endpoint(api: Api) -> MethodRouter<Arc<Served>> {
    post(
        move |State(served): State<Arc<Served>>, via: Via, headers: HeaderMap, body: Bytes| {
            call(served, api, via, headers, body)
        },
    )
}

async fn call(
    served: Arc<Served>,
    api: Api,
    via: Via,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let key = key(&headers);
    if !served.knows(&key) {
        turn_away(&served, api, key, via, StatusCode::UNAUTHORIZED);
        let message = "Incorrect API key provided.";
        return refused(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
    }
    let request = match Request::read(api, &body) {
        Ok(request) => request,
        Err(message) => {
            turn_away(&served, api, key, via, StatusCode::BAD_REQUEST);
            return refused(StatusCode::BAD_REQUEST, "invalid_value", message);
        }
    };
    let Arrival {
        index,
        number,
        standing,
    } = arrive(&served, &request, key, via);
    let mut headers = limit_headers(&served.options, &standing);
    let Some(number) = number else {
        let message = "Rate limit reached. Please try again later.";
        let status = StatusCode::TOO_MANY_REQUESTS;
        return (headers, refused(status, "rate_limit_exceeded", message)).into_response();
    };
    let fate = served.options.faults.fate(number, &request.asked);
    served.compute(&request.asked, fate).await;
    if let Some((status, reply)) = failed(fate) {
        if let Some(wait_ms) = served.options.faults.retry_after_ms(fate) {
            headers.insert("retry-after-ms", HeaderValue::from(wait_ms));
        }
        served.ended(index, status);
        return (headers, reply).into_response();
    }
    if fate == Fate::Silent {
        return std::future::pending().await;
    }
    (headers, answered(served, request, index, fate)).into_response()
}

/// What is asked of an endpoint, and what is said to it if nothing goes wrong.
struct Request {
    api: Api,
    asked: Asked,
    /// Empty for embeddings, which are no text.
    content: String,
    answer_tokens: u64,
}

impl Request {
    fn read(api: Api, body: &[u8]) -> Result<Self, &'static str> {
        let body: Value = serde_json::from_slice(body).map_err(|_| "the request is no JSON")?;
        let asked = match api {
            Api::Chat => answer::chat(&body),
            Api::Responses => answer::responses(&body),
            Api::Embeddings => answer::embeddings(&body),
        }?;
        let content = match api {
            Api::Chat | Api::Responses => asked.content(),
            Api::Embeddings => String::new(),
        };
        Ok(Self {
            api,
            asked,
            answer_tokens: answer::tokens(&content),
            content,
        })
    }
}

/// The answer to a call that is let in and does not fail, at once or piece by piece.
fn answered(served: Arc<Served>, request: Request, index: usize, fate: Fate) -> Response {
    let Request {
        api,
        asked,
        content,
        answer_tokens,
    } = request;
    let said = Said {
        id: format!("{index:08}"),
        content: match fate {
            Fate::Refused => Err(REFUSAL.to_owned()),
            Fate::Malformed => Ok(content.chars().take(content.chars().count() / 2).collect()),
            Fate::Short => Ok(shortened(&asked)),
            _ => Ok(content),
        },
        tokens: answer_tokens,
    };
    let reply = match (api, asked.is_streamed) {
        (Api::Chat, true) => {
            return streamed(served, index, stream::chat(&asked, &said), fate);
        }
        (Api::Responses, true) => {
            return streamed(served, index, stream::response(&asked, &said), fate);
        }
        (Api::Chat, false) => replies::chat(&asked, &said),
        (Api::Responses, false) => replies::response(&asked, &said),
        (Api::Embeddings, _) => {
            let mut vectors = asked.vectors(served.options.dimensions);
            if fate == Fate::Short {
                vectors.pop();
            }
            replies::embeddings(&asked, vectors)
        }
    };
    served.ended(index, StatusCode::OK);
    Json(reply).into_response()
}

fn key(headers: &HeaderMap) -> String {
    let value = headers.get("authorization");
    let value = value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.trim_start_matches("Bearer ").to_owned()
}

/// A call that is noted.
struct Arrival {
    /// Its place in the record.
    index: usize,
    /// Its number among those that were let in; `None` if it is not.
    number: Option<u64>,
    /// What headers say.
    standing: Standing,
}

/// Notes a call and lets it in or not.
fn arrive(served: &Served, request: &Request, key: String, via: Via) -> Arrival {
    let Request {
        api,
        asked,
        content: _,
        answer_tokens,
    } = request;
    let tokens = asked.prompt_tokens + answer_tokens;
    let mut shared = served.lock();
    // Read under the lock, so that the record is in the order of its moments.
    let at_ms = served.now_ms();
    let limiter = shared.limiter_of_key.entry(key.clone()).or_default();
    let standing = limiter.ask(at_ms, tokens, &served.options.limits());
    let is_let_in = standing.is_let_in;
    shared.calls.push(Call {
        at_ms,
        ended_ms: (!is_let_in).then_some(at_ms),
        is_let_in,
        key,
        path: api.path().to_owned(),
        status: (!is_let_in).then_some(429),
        tokens,
        answer_tokens: *answer_tokens,
        rows: asked.rows.clone(),
        is_streamed: asked.is_streamed,
        version: format!("{:?}", via.version),
        peer_port: via.peer.0,
    });
    let number = is_let_in.then(|| {
        shared.calls_let_in += 1;
        shared.calls_let_in
    });
    Arrival {
        index: shared.calls.len() - 1,
        number,
        standing,
    }
}

/// Notes a call that carries no good key or cannot be read.
fn turn_away(served: &Served, api: Api, key: String, via: Via, status: StatusCode) {
    let mut shared = served.lock();
    let at_ms = served.now_ms();
    shared.calls.push(Call {
        at_ms,
        ended_ms: Some(at_ms),
        is_let_in: false,
        key,
        path: api.path().to_owned(),
        status: Some(status.as_u16()),
        tokens: 0,
        answer_tokens: 0,
        rows: Vec::new(),
        is_streamed: false,
        version: format!("{:?}", via.version),
        peer_port: via.peer.0,
    });
}

fn failed(fate: Fate) -> Option<(StatusCode, Response)> {
    let (status, code, message) = match fate {
        Fate::Overloaded => (
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "The engine is currently overloaded, please try again later.",
        ),
        Fate::Failed => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "The server had an error while processing your request.",
        ),
        Fate::TooLong => (
            StatusCode::BAD_REQUEST,
            "context_length_exceeded",
            "This model's maximum context length is exceeded by your messages.",
        ),
        Fate::Answered
        | Fate::Malformed
        | Fate::Short
        | Fate::Silent
        | Fate::Cut
        | Fate::Stalled
        | Fate::Refused => return None,
    };
    Some((status, refused(status, code, message)))
}

fn refused(status: StatusCode, code: &str, message: &str) -> Response {
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "requests",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    (status, Json(replies::error(kind, code, message))).into_response()
}

/// The answer without its last row, where there are several.
fn shortened(asked: &Asked) -> String {
    let rows = match asked.rows.len() {
        0 | 1 => asked.rows.clone(),
        several => asked.rows[..several - 1].to_vec(),
    };
    Asked {
        rows,
        ..asked.clone()
    }
    .content()
}

fn streamed(served: Arc<Served>, index: usize, events: Vec<Event>, fate: Fate) -> Response {
    let last = events.len().saturating_sub(1);
    let middle = last / 2;
    let events = futures::stream::iter(events.into_iter().enumerate());
    let paused = events.then(move |(number, event)| {
        let served = served.clone();
        async move {
            if number > 0 {
                served.sleep_ms(served.options.stream_pause_ms).await;
            }
            match fate {
                Fate::Cut if number == middle => {
                    served.ended(index, StatusCode::INTERNAL_SERVER_ERROR);
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted));
                }
                Fate::Stalled if number == middle => return std::future::pending().await,
                _ => {}
            }
            if number == last {
                served.ended(index, StatusCode::OK);
            }
            Ok(event)
        }
    });
    Sse::new(paused).into_response()
}
