//! A stand-in for a paid API, for tests and rehearsals: chat completions, embeddings and responses
//! as OpenAI has them, with rate limits that are enforced, and as slow and as faulty as asked.
//!
//! It records every call, so that a test can prove what was asked, when, and whether a limit was
//! kept. It knows nothing of jobs, and it never answers from anything but the request.

mod answer;
mod faults;
mod http;
mod limits;
mod options;
mod record;
mod replies;
mod schema;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

pub use self::options::{Faults, StandInOptions};
pub use self::record::{Call, Peak, Record};

/// A running stand-in; it ends when dropped.
pub struct StandIn {
    address: SocketAddr,
    served: Arc<http::Served>,
    _serving: AbortOnDropHandle<std::io::Result<()>>,
}

impl StandIn {
    /// Listens on a free loopback port. Must be called within a tokio runtime.
    pub async fn start(options: StandInOptions) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        Self::listen(listener, options)
    }

    /// Answers on `listener`.
    pub fn listen(listener: TcpListener, options: StandInOptions) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let served = Arc::new(http::Served::new(options));
        let router = http::router(served.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            served,
            _serving: AbortOnDropHandle::new(serving),
        })
    }

    /// What a client takes for its base URL: `http://127.0.0.1:PORT/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Every call so far, in the order of their arrival.
    pub fn record(&self) -> Record {
        self.served.record()
    }
}
