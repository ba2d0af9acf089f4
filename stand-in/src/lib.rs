//! A stand-in for a paid API, for tests and rehearsals: chat completions, embeddings and responses
//! as OpenAI has them, with rate limits that are enforced, and as slow and as faulty as asked.
//!
//! It records every call, so that a test can prove what was asked, when, and whether a limit was
//! kept. It knows nothing of jobs, and it never answers from anything but the request.

mod answer;
mod faults;
mod headers;
mod http;
mod limits;
mod options;
mod record;
mod replies;
mod schema;
mod stream;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

pub use self::limits::Algorithm;
pub use self::options::{Faults, StandInOptions};
pub use self::record::{Call, Peak, Record};
use self::tls::TlsListener;
pub use self::tls::TlsOptions;

/// A running stand-in; it ends when dropped.
pub struct StandIn {
    address: SocketAddr,
    served: Arc<http::Served>,
    serving: Serving,
}

type Serving = AbortOnDropHandle<std::io::Result<()>>;

fn serve(listener: TcpListener, served: &Arc<http::Served>) -> std::io::Result<Serving> {
    let router = http::router(served.clone());
    let service = router.into_make_service_with_connect_info::<http::Peer>();
    let serving = match served.tls() {
        None => tokio::spawn(async move { axum::serve(listener, service).await }),
        Some((certificate, key, http1_only)) => {
            let listener = TlsListener::new(listener, certificate, key, http1_only)?;
            tokio::spawn(async move { axum::serve(listener, service).await })
        }
    };
    Ok(AbortOnDropHandle::new(serving))
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
        Ok(Self {
            address,
            serving: serve(listener, &served)?,
            served,
        })
    }

    /// Listens once more on its port, after the runtime that it was started in has ended with all
    /// connections. Its record stays, and its clock ran on.
    pub async fn start_again(&mut self) -> std::io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.serving = serve(listener, &self.served)?;
        Ok(())
    }

    /// What a client takes for its base URL: `http://127.0.0.1:PORT/v1`, or `https://` with TLS.
    pub fn base_url(&self) -> String {
        let scheme = self.served.tls().map_or("http", |_| "https");
        format!("{scheme}://{}/v1", self.address)
    }

    /// Every call so far, in the order of their arrival.
    pub fn record(&self) -> Record {
        self.served.record()
    }
}
