//! A network that fails in one direction: requests still reach the server, replies are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Forwards connections to a loopback port until dropped.
pub struct Proxy {
    /// Port that it listens on.
    pub port: u16,
    loses_replies: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts forwarding to `server_port`.
    pub async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let loses_replies = Arc::new(AtomicBool::new(false));
        let is_lossy = loses_replies.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server_port))
                    .await
                    .unwrap();
                tokio::spawn(forward(client, server, is_lossy.clone()));
            }
        });
        Self {
            port,
            loses_replies,
            accepting,
        }
    }

    /// From now on replies on connections that are open vanish; connections made after
    /// [`Proxy::heal`] work. The connections that lost a reply stay open and silent for good.
    pub fn lose_replies(&self) {
        self.loses_replies.store(true, Ordering::SeqCst);
    }

    /// Lets new connections work again.
    pub fn heal(&self) {
        self.loses_replies.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(client: TcpStream, server: TcpStream, is_lossy: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        // Either side may hang up at any time; then there is nothing left to forward.
        let _ = copy(&mut from_client, &mut to_server).await;
    };
    let replies = async {
        let mut buffer = [0; 4096];
        let mut is_silent = false;
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            is_silent |= is_lossy.load(Ordering::SeqCst);
            if !is_silent && to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(requests, replies);
}
