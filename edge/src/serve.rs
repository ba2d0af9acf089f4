//! Listens, accepts and drains.
//!
//! Connections are accepted only while there is a permit for one more, headers, bodies and writes
//! have deadlines, and a drain lets every connection finish the request it is serving.

use std::{future::Future, io, path::Path, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};

use crate::write_deadline::WriteDeadline;

/// The bounds of a server's connections.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// Most connections at a time; further ones wait to be accepted.
    pub connections_max: usize,
    /// Time for the headers of a request, and the longest a connection stays idle.
    pub header_deadline: Duration,
    /// Longest that a client may leave what is written to it unread.
    pub write_deadline: Duration,
    /// Longest that connections may take to end once the server is to stop.
    pub drain_deadline: Duration,
}

/// Where the server listens.
pub enum Listener {
    /// A TCP address.
    Tcp(TcpListener),
    /// A Unix socket, removed when the listener is dropped.
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's file when dropped.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on `address`, `host:port`.
    pub async fn tcp(address: &str) -> io::Result<Self> {
        Ok(Self::Tcp(TcpListener::bind(address).await?))
    }

    /// Listens on a socket file. One that a dead server left behind is replaced; a live one is not.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        let bound = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(error);
                }
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        };
        Ok(Self::Unix(bound?, SocketFile(path.to_owned())))
    }

    /// The TCP address; port 0 has become a real one.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are written at once; waiting to fill a packet only adds latency.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Serves `router` on `listener` until `stop` is over, then lets every connection finish its request,
/// for at most the drain deadline. Says whether all did.
pub async fn serve(
    listener: Listener,
    router: Router,
    options: ServeOptions,
    stop: impl Future<Output = ()>,
) -> bool {
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(options.connections_max));
    let mut stopped = pin!(stop);
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stopped => break,
        };
        match stream {
            Ok(Stream::Tcp(stream)) => spawn(stream, &router, &options, &graceful, permit),
            Ok(Stream::Unix(stream)) => spawn(stream, &router, &options, &graceful, permit),
            Err(error) => {
                // Mostly too many open files: they become fewer only with time.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    tokio::time::timeout(options.drain_deadline, graceful.shutdown())
        .await
        .is_ok()
}

fn spawn<S>(
    stream: S,
    router: &Router,
    options: &ServeOptions,
    graceful: &GracefulShutdown,
    permit: impl Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        // Without a timer hyper's header deadline does nothing.
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_deadline)
        .serve_connection(
            TokioIo::new(WriteDeadline::new(stream, options.write_deadline)),
            TowerToHyperService::new(router.clone()),
        );
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(permit);
    });
}
