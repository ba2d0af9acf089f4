//! HTTPS to an API elsewhere: pooled connections, HTTP/2 where the API speaks it, bounded in time and
//! size.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use millrace_crds::inference_service::{Remote, RemoteApi};
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_telemetry::chain;
use reqwest::Certificate;
use reqwest::redirect::Policy;

use super::{ApiError, CallError, Credentials};
use crate::secrets::{AUTHORITIES, Secret};
use crate::store::{LinkLocal, guarded};

/// Longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an idle connection is kept. Load balancers close theirs after a minute or so.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest answer: 2,048 vectors of 3,072 numbers in JSON.
const REPLY_BYTES_MAX: usize = 128 << 20;

/// Type of an answer that comes piece by piece.
const EVENT_STREAM: &str = "text/event-stream";

/// What an API said.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// Whether it came piece by piece. Some APIs answer whole whatever they are asked.
    pub fn is_streamed(&self) -> bool {
        let kind = self.headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| kind.starts_with(EVENT_STREAM))
    }
}

/// A handle on the connections to an API.
pub struct Http {
    client: reqwest::Client,
    url: String,
    key: Option<Secret>,
    /// What answers may come as.
    accepts: HeaderValue,
}

impl Http {
    pub fn new(
        spec: &Remote,
        credentials: Credentials,
        link_local: LinkLocal,
    ) -> Result<Self, ApiError> {
        let Credentials { key, authorities } = credentials;
        let base = spec.base_url.trim_end_matches('/');
        let endpoint = match spec.api {
            RemoteApi::Chat => "chat/completions",
            RemoteApi::Responses => "responses",
            RemoteApi::Embeddings => "embeddings",
        };
        let url = format!("{base}/{endpoint}");
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(spec.call_time_max())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            // The key is for the API that the service names and for nobody else.
            .redirect(Policy::none());
        let client = match spec.stream {
            true => client.read_timeout(spec.timeout.into()),
            false => client,
        };
        let client = match authorities {
            Some(file) => client.tls_certs_merge(certificates(&file)?),
            None => client,
        };
        let client =
            guarded(client, &url, link_local).map_err(|error| ApiError::Unusable(chain(&error)))?;
        let accepts = match spec.stream {
            true => HeaderValue::from_static(EVENT_STREAM),
            false => HeaderValue::from_static("application/json"),
        };
        Ok(Self {
            client,
            url,
            key,
            accepts,
        })
    }

    /// Where to see to the key.
    pub fn key_advice(&self) -> String {
        let field = "spec.remote.apiKeySecretRef";
        match &self.key {
            None => format!("it was asked without a key; name one by {field}"),
            Some(key) => match key.variable() {
                Some(variable) => format!("see to the key in {variable} ({field})"),
                None => format!("see to {field}"),
            },
        }
    }

    pub async fn post(&self, body: Bytes) -> Result<Answer, CallError> {
        let mut request = self
            .client
            .post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, self.accepts.clone())
            .body(body);
        if let Some(key) = self.key.as_ref().map(Secret::value) {
            let bearer = HeaderValue::from_str(&format!("Bearer {key}"));
            let mut bearer = bearer.map_err(|_| {
                CallError::Refused(
                    "spec.remote.apiKeySecretRef: the key has characters that no header can carry"
                        .to_owned(),
                )
            })?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let mut reply = request.send().await.map_err(failed)?;
        let mut whole = BytesMut::new();
        while let Some(piece) = reply.chunk().await.map_err(failed)? {
            if whole.len() + piece.len() > REPLY_BYTES_MAX {
                let message = format!("the API's answer is longer than {REPLY_BYTES_MAX} bytes");
                let error = RowError::new(RowErrorCode::AnswerInvalid, message);
                return Err(CallError::Rejected(error));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Answer {
            status: reply.status(),
            headers: reply.headers().clone(),
            body: whole.freeze(),
        })
    }
}

/// The certificates of a file.
fn certificates(file: &Path) -> Result<Vec<Certificate>, ApiError> {
    let unusable = |words: String| {
        let field = "spec.remote.apiKeySecretRef";
        ApiError::Unusable(format!("{AUTHORITIES} of {field} cannot be used: {words}"))
    };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).map_err(|error| unusable(chain(&error)))?;
    match certificates.is_empty() {
        true => Err(unusable("it holds no certificate as PEM".to_owned())),
        false => Ok(certificates),
    }
}

/// What a failed exchange means. Names no URL: whoever reads an error line has no use for it.
fn failed(error: reqwest::Error) -> CallError {
    let error = error.without_url();
    if error.is_connect() {
        return CallError::Away(chain(&error));
    }
    CallError::Failed(match error.is_timeout() {
        true => RowError::new(
            RowErrorCode::Timeout,
            "the API did not answer within spec.remote.timeout",
        ),
        false => RowError::new(
            RowErrorCode::ModelFailed,
            "the API ended the connection before it answered",
        ),
    })
}
