//! Asks a child over HTTP whether it is ready.

use std::{path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// Longest a probe takes before it counts as a no.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// A `GET` that is answered 200 when the child is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where the child listens.
    pub address: Address,
    /// What to get, for instance `/ready`.
    pub path: String,
}

/// Where a child listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Probe {
    /// Whether the child says yes right now.
    pub async fn is_ready(&self) -> bool {
        let asked = async {
            match &self.address {
                Address::Unix(path) => self.ask(UnixStream::connect(path).await.ok()?).await,
                Address::Tcp(address) => self.ask(TcpStream::connect(address).await.ok()?).await,
            }
        };
        tokio::time::timeout(PROBE_DEADLINE, asked)
            .await
            .ok()
            .flatten()
            .unwrap_or(false)
    }

    async fn ask(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<bool> {
        let path = &self.path;
        let request = format!("GET {path} HTTP/1.1\r\nHost: child\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut status_line = [0; b"HTTP/1.1 200".len()];
        stream.read_exact(&mut status_line).await.ok()?;
        Some(&status_line == b"HTTP/1.1 200")
    }
}
