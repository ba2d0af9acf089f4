//! The tier in Redis, which processes share.
//!
//! Bounded in time and in memory whatever the server does: a call that fails or takes too long turns
//! the tier off for a while, and answers that cannot be written are dropped.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use millrace_leases::{LeaseError, RedisConnection, RedisOptions};
use millrace_protocol::wire::Prediction;
use redis::{Cmd, FromRedisValue};

use super::writes::{Write, Writes, WritesOptions};
use super::{Key, Lookups};

/// Longest that a call may take. Computing a text takes as long on a slow machine.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a server that failed is not asked again.
const REST: Duration = Duration::from_secs(5);

/// Keys in one command: about a millisecond of the server's only thread.
const KEYS_MAX: usize = 256;

/// Answers on their way.
const WRITES: WritesOptions = WritesOptions {
    waiting_max: 4_096,
    at_once_max: 128,
};

/// The tier.
pub(super) struct Shared {
    server: Arc<Server>,
    writes: Writes,
}

impl Shared {
    /// The tier at `url`, with answers of `namespace`. Connects with the first call.
    pub(super) fn new(
        url: String,
        namespace: &str,
        ttl: Duration,
        lookups: Lookups,
    ) -> Result<Self, LeaseError> {
        let connection = RedisConnection::new(&RedisOptions {
            url,
            command_timeout: COMMAND_TIMEOUT,
            refusals_pass: true,
        })?;
        let server = Arc::new(Server {
            connection,
            prefix: format!("millrace:{{{namespace}/cache}}:"),
            ttl,
            rests_until: Mutex::new(None),
            lookups,
        });
        let written = server.clone();
        let writes = Writes::new(WRITES, move |answers| write(written.clone(), answers));
        Ok(Self { server, writes })
    }

    /// What the server knows of each key.
    pub(super) async fn get(&self, keys: &[Key]) -> Vec<Option<Arc<Prediction>>> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_MAX) {
            let mut command = redis::cmd("MGET");
            for key in keys {
                command.arg(self.server.name(*key));
            }
            match self.server.call::<Vec<Option<Vec<u8>>>>(&command).await {
                Some(values) if values.len() == keys.len() => {
                    found.extend(values.iter().map(|value| {
                        let prediction = value.as_deref().and_then(read);
                        let known = prediction.is_some();
                        self.server.lookups.note("redis", known);
                        prediction
                    }));
                }
                _ => found.extend(keys.iter().map(|_| None)),
            }
        }
        found
    }

    /// Writes an answer, some time. Never waits.
    pub(super) fn put(&self, key: Key, answer: &Arc<Prediction>) {
        self.writes.put(key, answer);
    }

    /// Waits until what was put before is written, or cannot be.
    pub(super) async fn flush(&self) {
        self.writes.flush().await;
    }
}

/// Reads an answer. One that is not ours, or has no JSON form, is as good as none.
fn read(bytes: &[u8]) -> Option<Arc<Prediction>> {
    let prediction: Prediction = rmp_serde::from_slice(bytes).ok()?;
    prediction.is_finite().then(|| Arc::new(prediction))
}

/// All at once over one connection, which sends them in one go.
async fn write(server: Arc<Server>, answers: Vec<Write>) -> bool {
    let calls = answers.into_iter();
    let calls = calls.map(|(key, answer)| server.set(key, answer));
    futures::future::join_all(calls).await;
    true
}

struct Server {
    connection: RedisConnection,
    prefix: String,
    ttl: Duration,
    /// Until when the server is not asked, since it failed.
    rests_until: Mutex<Option<Instant>>,
    lookups: Lookups,
}

impl Server {
    fn name(&self, key: Key) -> String {
        format!("{}{}", self.prefix, key.to_hex())
    }

    async fn set(&self, key: Key, answer: Arc<Prediction>) {
        let value = rmp_serde::to_vec(&*answer).expect("an answer always has a MessagePack form");
        let mut command = redis::cmd("SET");
        command.arg(self.name(key)).arg(value);
        command.arg("PX").arg(self.ttl.as_millis() as u64);
        self.call::<()>(&command).await;
    }

    async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        if self.rests(Instant::now()) {
            return None;
        }
        match self.connection.query(command).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                // Many calls fail together; one of them says it.
                if !self.rests(Instant::now()) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        cause = error.source().map(tracing::field::display),
                        "the cache's Redis is left alone for {REST:?}"
                    );
                    *self.lock() = Some(Instant::now() + REST);
                }
                None
            }
        }
    }

    fn rests(&self, now: Instant) -> bool {
        self.lock().is_some_and(|until| now < until)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.rests_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
