//! The jobs of a service, as its workers find them. A hint like the leases: whoever reconciles the
//! jobs writes it, and writes it again where it was lost.

use std::sync::LazyLock;

use ::redis::Script;
use millrace_protocol::registry::RegisteredJob;

use crate::redis::Connection;
use crate::{LeaseError, RedisOptions};

// What nobody writes to for a week belongs to nobody any more.
static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "#!lua\nlocal new = redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])\n\
         redis.call('EXPIRE', KEYS[1], 604800)\nreturn new",
    )
});
static REMOVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new("#!lua flags=allow-oom\nreturn redis.call('HDEL', KEYS[1], ARGV[1])")
});
static LIST: LazyLock<Script> = LazyLock::new(|| {
    Script::new("#!lua flags=no-writes,allow-oom\nreturn redis.call('HGETALL', KEYS[1])")
});

/// The jobs of one service.
pub struct JobRegistry {
    connection: Connection,
    key: String,
}

impl JobRegistry {
    /// The registry of a service. Connects with the first call. Must be called within a tokio
    /// runtime.
    pub fn new(redis: &RedisOptions, namespace: &str, service: &str) -> Result<Self, LeaseError> {
        Ok(Self {
            connection: Connection::new(redis)?,
            key: format!("millrace:{{{namespace}/{service}}}:jobs"),
        })
    }

    /// Adds a job, or replaces what is said of it.
    pub async fn put(&self, name: &str, job: &RegisteredJob) -> Result<(), LeaseError> {
        let job = serde_json::to_string(job).expect("a registered job is plain data");
        let mut put = PUT.prepare_invoke();
        put.key(&self.key).arg(name).arg(job);
        self.connection.invoke::<i64>(&put).await.map(drop)
    }

    /// Takes a job away: its workers give back what they hold of it.
    pub async fn remove(&self, name: &str) -> Result<(), LeaseError> {
        let mut remove = REMOVE.prepare_invoke();
        remove.key(&self.key).arg(name);
        self.connection.invoke::<i64>(&remove).await.map(drop)
    }

    /// All jobs, by name. An entry that cannot be read is left out: another version wrote it.
    pub async fn list(&self) -> Result<Vec<(String, RegisteredJob)>, LeaseError> {
        let mut list = LIST.prepare_invoke();
        list.key(&self.key);
        let flat: Vec<String> = self.connection.invoke(&list).await?;
        let entries = flat.as_chunks::<2>().0.iter();
        let mut jobs: Vec<(String, RegisteredJob)> = entries
            .filter_map(|[name, job]| Some((name.clone(), serde_json::from_str(job).ok()?)))
            .collect();
        jobs.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(jobs)
    }
}
