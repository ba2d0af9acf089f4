//! A proxy between clients and an S3 server that fails the first try of every write: before the server sees it,
//! or after the server did it. It never changes what it forwards.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::s3_server::S3Server;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<Full<Bytes>>;

/// What becomes of the first try of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The server does what it was asked, and the connection ends without an answer.
    LostReply,
    /// The server does what it was asked, and the client is told that it failed.
    FailedAfter,
    /// The server never sees the write, and the client is told that it failed.
    FailedBefore,
}

impl Fault {
    const ALL: [Self; 3] = [Self::LostReply, Self::FailedAfter, Self::FailedBefore];
}

/// A proxy on a loopback port; it ends when dropped.
pub struct S3Proxy {
    address: SocketAddr,
    state: Arc<State>,
    _runtime: Runtime,
}

struct State {
    upstream: SocketAddr,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Writes that were tried, by method and path.
    tried: HashSet<String>,
    /// How many writes below each folder failed at first, so that all folders meet all faults.
    failed: HashMap<String, usize>,
    struck: BTreeSet<(String, Fault)>,
}

impl S3Proxy {
    /// Starts a proxy to the server.
    pub fn start(server: &S3Server) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("the port");
        let state = Arc::new(State {
            upstream: server.address(),
            seen: Mutex::default(),
        });
        runtime.spawn(listen(listener, state.clone()));
        Self {
            address,
            state,
            _runtime: runtime,
        }
    }

    /// The variables by which millrace finds the server through this proxy.
    pub fn variables(&self, server: &S3Server) -> Vec<(&'static str, String)> {
        let mut variables = server.variables();
        variables.push(("AWS_ENDPOINT_URL", format!("http://{}", self.address)));
        variables
    }

    /// The faults that writes below a folder met, which is given by the end of its path.
    pub fn struck(&self, folder: &str) -> Vec<Fault> {
        let seen = self.state.seen.lock();
        let seen = seen.unwrap_or_else(PoisonError::into_inner);
        let struck = seen.struck.iter().filter(|(of, _)| of.ends_with(folder));
        let faults: BTreeSet<Fault> = struck.map(|(_, fault)| *fault).collect();
        faults.into_iter().collect()
    }
}

impl State {
    /// What becomes of a request.
    fn fault(&self, request: &Request<Incoming>) -> Option<Fault> {
        if [Method::GET, Method::HEAD].contains(request.method()) {
            return None;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let write = format!("{} {}", request.method(), request.uri());
        if !seen.tried.insert(write) {
            return None;
        }
        let path = request.uri().path();
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let failed = seen.failed.entry(folder.to_owned()).or_default();
        let fault = Fault::ALL[*failed % Fault::ALL.len()];
        *failed += 1;
        seen.struck.insert((folder.to_owned(), fault));
        Some(fault)
    }

    async fn forward(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let stream = TcpStream::connect(self.upstream).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Response::from_parts(parts, Full::new(body)))
    }
}

async fn listen(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| answer(state.clone(), request));
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        // A client that gets no answer is what this is for.
        tokio::spawn(async move { serving.await.ok() });
    }
}

/// Answers a request; an error ends the connection without an answer.
async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Failure> {
    let fault = state.fault(&request);
    let (parts, body) = request.into_parts();
    let body = Full::new(body.collect().await?.to_bytes());
    if fault == Some(Fault::FailedBefore) {
        return Ok(failure());
    }
    let answer = state.forward(Request::from_parts(parts, body)).await?;
    match fault {
        Some(Fault::LostReply) => Err("the reply is lost".into()),
        Some(Fault::FailedAfter) => Ok(failure()),
        Some(Fault::FailedBefore) | None => Ok(answer),
    }
}

fn failure() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    answer
}
