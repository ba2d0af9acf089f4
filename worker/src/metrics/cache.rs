//! What the caches of this worker and of its server knew so far; the server is asked now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_protocol::registry::CacheCounts;

use crate::work::call::Caches;
use crate::work::client::{Own, ServerAddress};

/// How often the server is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// How long the worker waits for it: a server that is busy is asked another time.
const PATIENCE: Duration = Duration::from_millis(250);

/// The counts of a server, as last heard, and those of the worker.
pub struct CacheTotals {
    /// Before the APIs elsewhere that are asked.
    caches: Option<Arc<Caches>>,
    /// Absent for a foreign server, of which nobody knows, and where there is none.
    server: Option<Own>,
    asked: Option<Instant>,
    heard: Option<CacheCounts>,
}

impl CacheTotals {
    /// Nothing is heard yet.
    pub fn of(address: &ServerAddress) -> Self {
        let server = match address.server() {
            ServerAddress::Socket(socket) => Some(Own::new(socket)),
            ServerAddress::Url(_) | ServerAddress::Remote(_) | ServerAddress::Beside(..) => None,
        };
        Self {
            caches: address.access().map(|access| access.caches.clone()),
            server,
            asked: None,
            heard: None,
        }
    }

    /// What is known, after asking if it is time to.
    pub async fn look(&mut self, now: Instant) -> Option<CacheCounts> {
        let is_time = |asked| now.duration_since(asked) >= ASK_INTERVAL;
        if let Some(server) = &self.server
            && self.asked.is_none_or(is_time)
        {
            self.asked = Some(now);
            if let Ok(Ok(counts)) = tokio::time::timeout(PATIENCE, server.cache()).await {
                self.heard = Some(counts);
            }
        }
        let own = self.caches.as_ref().map(|caches| caches.counts());
        let known = own.into_iter().chain(self.heard);
        known.reduce(|one, other| CacheCounts {
            hits: one.hits + other.hits,
            misses: one.misses + other.misses,
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_server_is_asked_now_and_then_and_what_it_said_last_stays() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let info = json!({"models": [], "cache": {"hits": 3, "misses": 1}});
        let routes = Router::new().route("/info", get(|| std::future::ready(Json(info))));
        let server = tokio::spawn(axum::serve(listener, routes).into_future());
        let mut totals = CacheTotals::of(&ServerAddress::Socket(socket));
        let start = Instant::now();
        let expected = Some(CacheCounts { hits: 3, misses: 1 });
        assert_eq!(totals.look(start).await, expected);
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert_eq!(totals.look(start + ASK_INTERVAL / 2).await, expected);
        assert_eq!(totals.asked, Some(start));
        assert_eq!(totals.look(start + ASK_INTERVAL).await, expected);
        assert_eq!(totals.asked, Some(start + ASK_INTERVAL));
    }
}
