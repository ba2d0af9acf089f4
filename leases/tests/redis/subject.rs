//! A lease store under test, with hands on its clock.

use std::time::Duration;

use async_trait::async_trait;
use millrace_leases::{
    Claim, LeaseOptions, LeaseStore, MemoryLeaseStore, RedisLeaseStore, RedisOptions, RunKey,
};
use millrace_protocol::cost::Cost;
use millrace_protocol::tally::{Rows, Tally};
use millrace_protocol::{lease::Lease, plan::ShardIndex};

use millrace_e2e::redis_server::RedisServer;

/// Long enough that no lease runs out by itself while a test runs.
pub const OPTIONS: LeaseOptions = LeaseOptions {
    lease_ttl: Duration::from_secs(3600),
    deliveries_max: 3,
};

/// A store whose clock the test moves.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The store.
    fn leases(&self) -> &dyn LeaseStore;

    /// Lets time pass for the leases.
    async fn advance(&self, time: Duration);

    /// Claims for a worker, and expects a lease.
    async fn lease(&self, owner: &str) -> Lease {
        match self.leases().claim(owner).await.unwrap() {
            Claim::Lease(lease) => lease,
            other => panic!("a lease was expected, not {other:?}"),
        }
    }
}

/// The memory store, by a paused clock.
pub struct InMemory(pub MemoryLeaseStore);

#[async_trait]
impl Subject for InMemory {
    fn leases(&self) -> &dyn LeaseStore {
        &self.0
    }

    async fn advance(&self, time: Duration) {
        tokio::time::advance(time).await;
    }
}

/// The Redis store; time passes by moving the moments at which leases run out.
pub struct OnRedis<'a> {
    server: &'a RedisServer,
    run: RunKey,
    store: RedisLeaseStore,
}

impl<'a> OnRedis<'a> {
    /// A store for the given run.
    pub fn new(server: &'a RedisServer, run: RunKey) -> Self {
        let store = connect(server, &run);
        Self { server, run, store }
    }
}

#[async_trait]
impl Subject for OnRedis<'_> {
    fn leases(&self) -> &dyn LeaseStore {
        &self.store
    }

    async fn advance(&self, time: Duration) {
        let script = "for _, shard in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
            redis.call('ZINCRBY', KEYS[1], -ARGV[1], shard)
        end";
        let (key, time_ms) = (self.run.key("leased"), time.as_millis().to_string());
        self.server
            .command::<()>(&["EVAL", script, "1", &key, &time_ms]);
    }
}

/// One more store of a run, with a connection of its own.
pub fn connect(server: &RedisServer, run: &RunKey) -> RedisLeaseStore {
    // A machine that runs all tests at once may be slow, and only some tests are about that.
    let redis = RedisOptions {
        command_timeout: Duration::from_secs(30),
        ..RedisOptions::new(server.url())
    };
    RedisLeaseStore::new(&redis, run, OPTIONS).unwrap()
}

/// A run for tests that need only one.
pub fn run() -> RunKey {
    RunKey {
        namespace: "default".into(),
        job: "reviews".into(),
        uid: None,
        run: 1,
    }
}

/// Runs a check over a memory store whose clock stands still.
pub fn in_memory(check: impl AsyncFnOnce(&dyn Subject)) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(check(&InMemory(MemoryLeaseStore::new(OPTIONS))));
}

/// Runs a check over a Redis store with a server of its own.
pub fn on_redis(check: impl AsyncFnOnce(&dyn Subject)) {
    let server = RedisServer::start();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { check(&OnRedis::new(&server, run())).await });
}

/// The counts that tests give a shard: told apart by its index.
pub fn tally(shard: ShardIndex) -> Tally {
    let n = u64::from(shard) + 1;
    Tally {
        rows: Rows {
            succeeded: 10 * n,
            failed: n,
            skipped: 2 * n,
        },
        tokens: 1000 * n,
        // More than a number of Lua holds exactly.
        cost: Cost::of_parts((1 << 54) + n),
    }
}
