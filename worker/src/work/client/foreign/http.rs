//! HTTP/1.1 to a foreign server: pooled connections, bounded in time and size.
//!
//! Says how an exchange ended and never what an answer means.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use millrace_protocol::row::{RowError, RowErrorCode};
use serde::Serialize;
use url::Url;

use super::super::{ClientError, REQUEST_TIMEOUT};

/// Longest that a server beside the worker may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept. Shorter than the five seconds after which uvicorn, under
/// vLLM and others, closes one: a request that meets such an end looks like one that killed the
/// server.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Idle connections that are kept: about as many as there are chunks in flight.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// Largest answer: 512 rows of 4,096 numbers in JSON, with room. A worker has several in flight and
/// half a gigabyte of memory.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Where a foreign server listens: `http://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl(Url);

/// Why a text is no such URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected http://host:port, without a path")]
pub struct ServerUrlError;

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        let url = Url::parse(text).map_err(|_| ServerUrlError)?;
        let is_bare = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let is_server = url.scheme() == "http" && url.has_host() && is_bare;
        is_server.then_some(Self(url)).ok_or(ServerUrlError)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A cheap handle on the connections to one server.
#[derive(Debug, Clone)]
pub struct Http {
    pool: Pool<HttpConnector, Full<Bytes>>,
    url: ServerUrl,
}

impl Http {
    pub fn new(url: &ServerUrl) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        let url = url.clone();
        Self { pool, url }
    }

    /// Asks for a path that the manifest names.
    pub async fn get_path(&self, path: &str) -> Result<Answer, ClientError> {
        let uri = format!("{}{path}", self.url).parse();
        let uri = uri.expect("the schema lets only the characters of a path through");
        self.send(Method::GET, uri, Bytes::new()).await
    }

    /// Asks for the path of these segments.
    pub async fn get(&self, segments: &[&str]) -> Result<Answer, ClientError> {
        self.send(Method::GET, self.uri(segments), Bytes::new())
            .await
    }

    /// Sends JSON to the path of these segments.
    pub async fn post(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(body).expect("texts always have a JSON form");
        self.send(Method::POST, self.uri(segments), body.into())
            .await
    }

    /// A name of a model may hold any character, so segments are encoded.
    fn uri(&self, segments: &[&str]) -> Uri {
        let mut url = self.url.0.clone();
        url.path_segments_mut()
            .expect("an http URL has a path")
            .clear()
            .extend(segments);
        url.as_str().parse().expect("a URL is a URI")
    }

    async fn send(&self, method: Method, uri: Uri, body: Bytes) -> Result<Answer, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body))
            .expect("a request of known parts is valid");
        tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(request))
            .await
            .map_err(|_| ClientError::Timeout)?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let reply = self.pool.request(request).await.map_err(|error| {
            let words = millrace_telemetry::chain(&error);
            match error.is_connect() {
                true => ClientError::Away(words),
                false => ClientError::Gone(words),
            }
        })?;
        let (parts, body) = reply.into_parts();
        let body = Limited::new(body, REPLY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match error.is::<LengthLimitError>() {
            true => ClientError::Rejected {
                error: RowError::new(
                    RowErrorCode::Refused,
                    format!("the server's answer is longer than {REPLY_BYTES_MAX} bytes"),
                ),
                words: String::new(),
            },
            false => ClientError::Gone(error.to_string()),
        })?;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_and_nothing_else() {
        for text in ["http://127.0.0.1:8000", "http://[::1]:80/", "http://a"] {
            let url: ServerUrl = text.parse().unwrap();
            assert!(text.starts_with(&url.to_string()), "{url}");
        }
        for text in [
            "127.0.0.1:8000",
            "https://a:1",
            "http://a:1/v1",
            "http://u@a:1",
            "http://a:1?b",
            "http://",
        ] {
            assert_eq!(text.parse::<ServerUrl>(), Err(ServerUrlError), "{text}");
        }
    }

    #[test]
    fn a_model_of_any_name_stays_within_its_segment() {
        let http = Http::new(&"http://a:1".parse().unwrap());
        let uri = http.uri(&["v2", "models", "../BAAI/bge m3?x", "infer"]);
        assert_eq!(uri.path(), "/v2/models/..%2FBAAI%2Fbge%20m3%3Fx/infer");
    }
}
