//! The jobs of a service, as its workers find them. A hint like the leases: whoever reconciles the
//! jobs writes it, and writes it again where it was lost.

use std::sync::LazyLock;

use ::redis::Script;
use millrace_protocol::registry::{RegisteredJob, WorkerReport};

use serde::de::DeserializeOwned;

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

// A worker that said nothing for so long is gone, or as good as gone.
static REPORT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "#!lua\nredis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])\n\
         redis.call('EXPIRE', KEYS[1], 3600)\nreturn 1",
    )
});
static WORKERS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "#!lua flags=allow-oom\nlocal alive, now = {}, redis.call('TIME')[1]\n\
         local all = redis.call('HGETALL', KEYS[1])\n\
         for i = 1, #all, 2 do\n\
           local at, report = string.match(all[i + 1], '^(%d+) (.*)$')\n\
           if at and now - at <= tonumber(ARGV[1]) then\n\
             alive[#alive + 1], alive[#alive + 2] = all[i], report\n\
           else redis.call('HDEL', KEYS[1], all[i]) end\n\
         end\nreturn alive",
    )
});

/// How long a worker's report counts.
const REPORT_SECONDS: u32 = 15;

/// The jobs of one service, and its workers.
pub struct JobRegistry {
    connection: Connection,
    key: String,
    workers_key: String,
}

impl JobRegistry {
    /// The registry of a service. Connects with the first call. Must be called within a tokio
    /// runtime.
    pub fn new(redis: &RedisOptions, namespace: &str, service: &str) -> Result<Self, LeaseError> {
        Ok(Self {
            connection: Connection::new(redis)?,
            key: format!("millrace:{{{namespace}/{service}}}:jobs"),
            workers_key: format!("millrace:{{{namespace}/{service}}}:workers"),
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
        Ok(entries(self.connection.invoke(&list).await?))
    }

    /// A worker's word on itself, by the name of its pod.
    pub async fn report(&self, pod: &str, report: &WorkerReport) -> Result<(), LeaseError> {
        let said = serde_json::to_string(report).expect("a report is plain data");
        let mut invocation = REPORT.prepare_invoke();
        invocation.key(&self.workers_key).arg(pod).arg(said);
        self.connection.invoke::<i64>(&invocation).await.map(drop)
    }

    /// The workers that spoke lately, by the names of their pods.
    pub async fn workers(&self) -> Result<Vec<(String, WorkerReport)>, LeaseError> {
        let mut invocation = WORKERS.prepare_invoke();
        invocation.key(&self.workers_key).arg(REPORT_SECONDS);
        Ok(entries(self.connection.invoke(&invocation).await?))
    }
}

/// The fields of a hash that can be read, by name.
fn entries<T: DeserializeOwned>(flat: Vec<String>) -> Vec<(String, T)> {
    let pairs = flat.as_chunks::<2>().0.iter();
    let mut entries: Vec<(String, T)> = pairs
        .filter_map(|[name, value]| Some((name.clone(), serde_json::from_str(value).ok()?)))
        .collect();
    entries.sort_by(|(left, _), (right, _)| left.cmp(right));
    entries
}
