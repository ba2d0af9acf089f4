//! The worker's way to the server that answers rows: this project's own behind a Unix socket, or a
//! foreign one, which the user brings.
//!
//! Knows nothing of shards or leases, and never retries: it tells apart what a caller must treat
//! differently and leaves the rest to it.

mod foreign;
pub mod remote;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use millrace_protocol::registry::CacheCounts;
use millrace_protocol::row::RowError;
use millrace_protocol::wire::{
    CHUNKS_PATH, ChunksReply, ChunksRequest, ROWS_CONTENT_TYPE, ROWS_PATH, RowsReply, RowsRequest,
};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use self::foreign::Foreign;
pub use self::foreign::{ServerUrl, ServerUrlError};
use self::remote::Access;
use super::chunked::guessed;
use crate::job::CheckedJob;

/// Longest a request may take; a batch of the longest rows takes far less on the slowest device.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Pause between two looks at a server that is starting.
const READY_POLL: Duration = Duration::from_millis(25);

/// Largest reply: 4,096 rows of 4,096 numbers, with room for several models.
const REPLY_BYTES_MAX: usize = 512 << 20;

/// Why a request gave no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's queue is full; ask again after the given time.
    #[error("the inference-server is over capacity")]
    Busy {
        /// How long the server asked to wait.
        retry_after: Duration,
    },
    /// The server is up and says that it cannot answer now; ask again after the given time, if it is
    /// ready then.
    #[error("the inference-server cannot answer for now")]
    Unavailable {
        /// How long the server asked to wait.
        retry_after: Duration,
    },
    /// The server takes no request as large as this one; smaller ones may do.
    #[error("the inference-server takes no request of this size: {0}")]
    TooLarge(String),
    /// A foreign server did not answer these texts together, and some of them may be to blame;
    /// smaller requests may do.
    #[error("the server did not answer these rows together: {error}")]
    Rejected {
        /// What a row ends with that is asked alone.
        error: RowError,
        /// The server's own words, which may repeat a row: they go into no error line.
        words: String,
    },
    /// A foreign server does not do what the service says of it.
    #[error("the server is not what spec.runtime says, model {model}: {message}")]
    Unsuited {
        /// Name of the model.
        model: String,
        /// What it does not do.
        message: String,
    },
    /// The request did not reach the server whole within its patience; nothing was computed.
    #[error("the request reached the inference-server too slowly")]
    TooSlow,
    /// Nobody listens, or the models are not loaded; nothing was computed.
    #[error("the inference-server cannot be reached: {0}")]
    Away(String),
    /// The server went away before it answered; it may have died of this very request.
    #[error("the inference-server went away before it answered: {0}")]
    Gone(String),
    /// The server did not answer within five minutes.
    #[error("the inference-server did not answer within {REQUEST_TIMEOUT:?}")]
    Timeout,
    /// The server refused the request; sending it again cannot help.
    #[error("the inference-server refused the request with status {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's own words.
        message: String,
    },
}

/// A model as the server's `/info` describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelInfo {
    /// Name in the service.
    pub name: String,
    /// SHA-256 over the model's files.
    pub digest: String,
}

#[derive(Debug, Deserialize)]
struct Info {
    models: Vec<ModelInfo>,
    #[serde(default)]
    cache: CacheCounts,
}

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum ServerAddress {
    /// This project's own, on a Unix socket.
    Socket(PathBuf),
    /// A foreign one.
    Url(ServerUrl),
    /// None: APIs elsewhere are asked.
    Remote(Access),
    /// A server for some rows, and APIs elsewhere for others.
    Beside(Box<ServerAddress>, Access),
}

impl ServerAddress {
    /// Where the server listens, if there is one.
    pub fn server(&self) -> &ServerAddress {
        match self {
            ServerAddress::Beside(server, _) => server,
            alone => alone,
        }
    }

    /// By what right APIs elsewhere are asked, if they are.
    pub fn access(&self) -> Option<&Access> {
        match self {
            ServerAddress::Remote(access) | ServerAddress::Beside(_, access) => Some(access),
            ServerAddress::Socket(_) | ServerAddress::Url(_) => None,
        }
    }
}

/// Why the server at an address cannot be the job's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A server of the user's own cannot be reached by a socket.
    #[error("the service brings its own server (spec.runtime): name it with --server-url")]
    NoUrl,
    /// A URL means a server of the user's own.
    #[error("--server-url is for a service with spec.runtime; this one has models")]
    NoRuntime,
    /// An API elsewhere is no server.
    #[error("the service is an API elsewhere (spec.remote): ask it with --remote, and no server")]
    IsRemote,
    /// There is no API elsewhere.
    #[error("--remote is for a service with spec.remote; this one has a server")]
    NoRemote,
}

/// A cheap handle on a server.
#[derive(Debug, Clone)]
pub enum Client {
    /// Of this project's own.
    Own(Own),
    /// Of one that the user brings.
    Foreign(Foreign),
}

impl Client {
    /// A client of the server at `address`, which answers the rows of `job`.
    pub fn new(address: &ServerAddress, job: &CheckedJob) -> Result<Self, AddressError> {
        match (address, &job.runtime) {
            (ServerAddress::Socket(socket), None) => Ok(Self::Own(Own::new(socket))),
            (ServerAddress::Url(url), Some(runtime)) => {
                Ok(Self::Foreign(Foreign::new(url, runtime, &job.steps)))
            }
            (ServerAddress::Beside(server, _), _) => Self::new(server, job),
            (ServerAddress::Remote(_), _) => Err(AddressError::NoRemote),
            (ServerAddress::Socket(_), Some(_)) => Err(AddressError::NoUrl),
            (ServerAddress::Url(_), None) => Err(AddressError::NoRuntime),
        }
    }

    /// Runs texts through models.
    pub async fn infer(&self, request: &RowsRequest) -> Result<RowsReply, ClientError> {
        match self {
            Self::Own(own) => own.infer(request).await,
            Self::Foreign(foreign) => foreign.infer(request).await,
        }
    }

    /// Has texts cut into chunks. The tokens of a foreign server's models are guessed.
    pub async fn chunks(&self, request: &ChunksRequest) -> Result<ChunksReply, ClientError> {
        match self {
            Self::Own(own) => own.chunks(request).await,
            Self::Foreign(_) => {
                let texts = guessed(&request.texts, request.limits).await;
                Ok(ChunksReply { texts })
            }
        }
    }

    /// Most texts that one request should hold.
    pub fn batch_rows_max(&self) -> usize {
        match self {
            // It cuts batches itself, and the worker's chunks are far below what it takes.
            Self::Own(_) => usize::MAX,
            Self::Foreign(foreign) => foreign.batch_rows_max(),
        }
    }

    /// Waits until the server is ready, for at most `patience`.
    pub async fn wait_ready(&self, patience: Duration) -> Result<(), ClientError> {
        let ready = async {
            match self {
                Self::Own(own) => own.until_ready().await,
                Self::Foreign(foreign) => foreign.until_ready().await,
            }
        };
        tokio::time::timeout(patience, ready)
            .await
            .map_err(|_| ClientError::Away(format!("it was not ready within {patience:?}")))
    }

    /// The models that the server has loaded, as far as the job needs them of a foreign one.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        match self {
            Self::Own(own) => own.models().await,
            Self::Foreign(foreign) => foreign.models().await,
        }
    }
}

/// A cheap handle on the inference-server behind a Unix socket. One connection per request: on a
/// Unix socket that costs microseconds, and no request ever meets a connection that died idle.
#[derive(Debug, Clone)]
pub struct Own {
    socket: PathBuf,
}

impl Own {
    /// A client of the server that listens on `socket`.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: socket.as_ref().to_owned(),
        }
    }

    async fn infer(&self, request: &RowsRequest) -> Result<RowsReply, ClientError> {
        let body = self.post(ROWS_PATH, request).await?;
        decode_reply(request, &body)
    }

    async fn chunks(&self, request: &ChunksRequest) -> Result<ChunksReply, ClientError> {
        let body = self.post(CHUNKS_PATH, request).await?;
        let reply: ChunksReply = rmp_serde::from_slice(&body).map_err(unreadable)?;
        match reply.texts.len() == request.texts.len() {
            true => Ok(reply),
            false => Err(mismatch(reply.texts.len(), request.texts.len())),
        }
    }

    async fn post(&self, path: &str, request: &impl Serialize) -> Result<Bytes, ClientError> {
        let body = rmp_serde::to_vec_named(request).expect("requests always serialise");
        let (status, retry_after, body) = self.send(Method::POST, path, body).await?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::TOO_MANY_REQUESTS => Err(ClientError::Busy { retry_after }),
            StatusCode::SERVICE_UNAVAILABLE => Err(ClientError::Away(words(&body))),
            StatusCode::PAYLOAD_TOO_LARGE => Err(ClientError::TooLarge(words(&body))),
            StatusCode::REQUEST_TIMEOUT => Err(ClientError::TooSlow),
            status => Err(refused(status, &body)),
        }
    }

    async fn until_ready(&self) {
        loop {
            let answer = self.send(Method::GET, "/ready", Vec::new()).await;
            if matches!(answer, Ok((StatusCode::OK, _, _))) {
                return;
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        Ok(self.info().await?.models)
    }

    /// What the server's cache knew so far.
    pub async fn cache(&self) -> Result<CacheCounts, ClientError> {
        Ok(self.info().await?.cache)
    }

    async fn info(&self) -> Result<Info, ClientError> {
        let (status, _, body) = self.send(Method::GET, "/info", Vec::new()).await?;
        if status != StatusCode::OK {
            return Err(refused(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| ClientError::Refused {
            status: status.as_u16(),
            message: format!("/info is not what this worker expects: {error}"),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Duration, Bytes), ClientError> {
        tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(method, path, body))
            .await
            .map_err(|_| ClientError::Timeout)?
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Duration, Bytes), ClientError> {
        let away = |error: &dyn std::fmt::Display| ClientError::Away(error.to_string());
        let gone = |error: &dyn std::fmt::Display| ClientError::Gone(error.to_string());
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| away(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| away(&error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "inference-server")
            .header(header::CONTENT_TYPE, ROWS_CONTENT_TYPE)
            .body(Full::new(Bytes::from(body)))
            .expect("a request of known parts is valid");
        millrace_telemetry::inject(request.headers_mut());
        let reply = sender
            .send_request(request)
            .await
            .map_err(|error| gone(&error))?;
        // A queue on the same machine empties within milliseconds.
        let retry_after = retry_after(reply.headers(), Duration::from_millis(20));
        let status = reply.status();
        let body = Limited::new(reply.into_body(), REPLY_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| gone(&error))?.to_bytes();
        drop(connection);
        Ok((status, retry_after, body))
    }
}

fn decode_reply(request: &RowsRequest, body: &[u8]) -> Result<RowsReply, ClientError> {
    let reply: RowsReply = rmp_serde::from_slice(body).map_err(unreadable)?;
    let whole = reply.rows.len() == request.texts.len()
        && reply
            .rows
            .iter()
            .all(|row| row.len() == request.models.len());
    match whole {
        true => Ok(reply),
        false => Err(mismatch(reply.rows.len(), request.texts.len())),
    }
}

fn unreadable(error: rmp_serde::decode::Error) -> ClientError {
    ClientError::Refused {
        status: 200,
        message: format!("the reply cannot be read: {error}"),
    }
}

fn mismatch(answered: usize, asked: usize) -> ClientError {
    ClientError::Refused {
        status: 200,
        message: format!("{answered} rows were answered where {asked} were asked"),
    }
}

/// What the server asks to wait; `soon` where it does not say in seconds.
fn retry_after(headers: &http::HeaderMap, soon: Duration) -> Duration {
    let seconds = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    seconds.map_or(soon, |s| Duration::from_secs(s.min(60)).max(soon))
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    ClientError::Refused {
        status: status.as_u16(),
        message: words(body),
    }
}

/// The server's own words, cut.
fn words(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(512)]).into_owned()
}
