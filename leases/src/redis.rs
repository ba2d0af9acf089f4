//! The lease store of a cluster: Lua scripts on a Redis 7 server, by that server's clock.
//!
//! Each call is one script, atomic and safe to repeat; what the scripts do stands in the `.lua`
//! files. Leases, epochs and counters survive a restart of the server as far as its append-only
//! file does, and what was lost is noticed by the next claim.

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use ::redis::{ErrorKind, RedisError, Script};
use async_trait::async_trait;
use millrace_protocol::{
    cost::Cost,
    lease::{DeadLetter, Lease},
    plan::{RunNumber, ShardIndex},
    tally::{Rows, Tally},
};

use super::{
    Acknowledgement, Claim, EXPIRED_ERROR, FailOutcome, LeaseError, LeaseOptions, LeaseStore,
    Renewal, Snapshot, cut_error,
};

mod connection;

pub use self::connection::Connection;

/// Shards per script that adds or opens them: a few milliseconds of the server's only thread.
const CHUNK_SHARDS_MAX: usize = 1_000;

/// Leases that one claim reclaims, for the same reason. Later claims take the rest.
const RECLAIMED_LEASES_MAX: usize = 1_000;

/// Claims without a reply that are remembered. A forgotten one costs a shard one lease TTL.
const UNANSWERED_CLAIMS_MAX: usize = 64;

/// The keys of a run, in the order in which `common.lua` names them.
const KEYS: [&str; 11] = [
    "open",
    "leased",
    "owners",
    "claims",
    "epochs",
    "deliveries",
    "errors",
    "dead",
    "done",
    "records",
    "counters",
];

/// A script with the shared beginning. `full` scripts need memory and are refused when the server
/// has none left; `tight` ones go on with what is there, which is what frees memory in the end, and run even
/// then.
macro_rules! script {
    (full, $file:literal) => {
        script!(@ "#!lua\n", $file)
    };
    (tight, $file:literal) => {
        script!(@ "#!lua flags=allow-oom\n", $file)
    };
    (reading, $file:literal) => {
        script!(@ "#!lua flags=no-writes,allow-oom\n", $file)
    };
    (@ $header:literal, $file:literal) => {
        LazyLock::new(|| {
            Script::new(concat!($header, include_str!("redis/common.lua"), include_str!($file)))
        })
    };
}

static PUSH: LazyLock<Script> = script!(full, "redis/push.lua");
static REOPEN: LazyLock<Script> = script!(full, "redis/reopen.lua");
static CLAIM: LazyLock<Script> = script!(tight, "redis/claim.lua");
static RENEW: LazyLock<Script> = script!(tight, "redis/renew.lua");
static FINISH: LazyLock<Script> = script!(tight, "redis/finish.lua");
static RELEASE: LazyLock<Script> = script!(tight, "redis/release.lua");
static FAIL: LazyLock<Script> = script!(tight, "redis/fail.lua");
static SNAPSHOT: LazyLock<Script> = script!(reading, "redis/snapshot.lua");
static FORGET: LazyLock<Script> = script!(tight, "redis/forget.lua");
static DEAD_LETTERS: LazyLock<Script> = script!(reading, "redis/dead_letters.lua");
static DEAD: LazyLock<Script> = script!(reading, "redis/dead.lua");

/// How to reach a Redis server. Not printable, since the URL may hold a password.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/database]`
    pub url: String,
    /// How long a call may take, connecting included, before it counts as unavailable.
    pub command_timeout: Duration,
    /// Whether a server that refuses counts as one that is away: so for users that somebody makes
    /// again when the server has lost them.
    pub refusals_pass: bool,
}

impl RedisOptions {
    /// The server at `url`, with a time-out of 2 s. Its refusals are final.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            command_timeout: Duration::from_secs(2),
            refusals_pass: false,
        }
    }
}

/// Which run a store holds the leases of. Names are Kubernetes names: no braces, no colons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunKey {
    /// Namespace of the job.
    pub namespace: String,
    /// Name of the job.
    pub job: String,
    /// Id of the job's object in a cluster: what is left of a deleted job is none of the business
    /// of the next one of its name.
    pub uid: Option<String>,
    /// Number of the run in its output.
    pub run: RunNumber,
}

impl RunKey {
    /// The full name of one key: `millrace:{namespace/job/uid/0001}:open`. The braces keep all keys of
    /// a run in one slot of a cluster; the namespace stands first so that an ACL can select it.
    pub fn key(&self, name: &str) -> String {
        let RunKey {
            namespace,
            job,
            uid,
            run,
        } = self;
        let uid = uid.as_deref().unwrap_or_default();
        format!("millrace:{{{namespace}/{job}/{uid}/{run:04}}}:{name}")
    }
}

/// Leases and counters of one run on a Redis server.
pub struct RedisLeaseStore {
    connection: Connection,
    keys: [String; KEYS.len()],
    options: LeaseOptions,
    unanswered: UnansweredClaims,
}

impl RedisLeaseStore {
    /// The store of a run. Connects with the first call, so a server that is away is no error yet.
    /// Must be called within a tokio runtime.
    pub fn new(
        redis: &RedisOptions,
        run: &RunKey,
        options: LeaseOptions,
    ) -> Result<Self, LeaseError> {
        Ok(Self {
            connection: Connection::new(redis)?,
            keys: KEYS.map(|name| run.key(name)),
            options,
            unanswered: UnansweredClaims::default(),
        })
    }

    /// Forgets the run: everything that matters of it is in the output.
    pub async fn forget(&self) -> Result<(), LeaseError> {
        self.ask(&FORGET, &[]).await.map(drop)
    }

    /// The dead shards from index `first` on, at most `limit`, in order: what their dead letters say of
    /// them may be a thousand times as long.
    pub async fn dead(
        &self,
        first: ShardIndex,
        limit: usize,
    ) -> Result<Vec<ShardIndex>, LeaseError> {
        let args = [first.to_string(), limit.to_string()];
        let shards = self.call(&DEAD, &args).await?;
        shards.iter().map(|shard| number(shard)).collect()
    }

    async fn call(&self, script: &Script, args: &[String]) -> Result<Vec<String>, LeaseError> {
        let mut invocation = script.prepare_invoke();
        for key in &self.keys {
            invocation.key(key);
        }
        for arg in args {
            invocation.arg(arg);
        }
        self.connection.invoke(&invocation).await
    }

    /// Calls a script whose reply is one word.
    async fn ask(&self, script: &Script, args: &[String]) -> Result<String, LeaseError> {
        let reply = self.call(script, args).await?;
        match <[String; 1]>::try_from(reply) {
            Ok([word]) => Ok(word),
            Err(reply) => Err(corrupt(&reply)),
        }
    }

    async fn finish(&self, args: &[String]) -> Result<Acknowledgement, LeaseError> {
        match self.ask(&FINISH, args).await?.as_str() {
            "counted" => Ok(Acknowledgement::Counted),
            "already_done" => Ok(Acknowledgement::AlreadyDone),
            "lost" => Ok(Acknowledgement::Lost),
            other => Err(corrupt(&[other.to_owned()])),
        }
    }

    fn lease_ttl_ms(&self) -> String {
        self.options.lease_ttl.as_millis().to_string()
    }
}

#[async_trait]
impl LeaseStore for RedisLeaseStore {
    async fn push(&self, shards: &[ShardIndex]) -> Result<(), LeaseError> {
        // One chunk after the other: the last one makes the run known, so it must come last.
        let chunks = shards.len().div_ceil(CHUNK_SHARDS_MAX).max(1);
        for index in 0..chunks {
            let start = index * CHUNK_SHARDS_MAX;
            let end = shards.len().min(start + CHUNK_SHARDS_MAX);
            let is_last = index + 1 == chunks;
            let mut args = vec![if is_last { "1" } else { "0" }.to_owned()];
            args.extend(shards[start..end].iter().map(ShardIndex::to_string));
            self.ask(&PUSH, &args).await?;
        }
        Ok(())
    }

    async fn reopen(&self, shards: &[ShardIndex]) -> Result<(), LeaseError> {
        for chunk in shards.chunks(CHUNK_SHARDS_MAX) {
            let args: Vec<String> = chunk.iter().map(ShardIndex::to_string).collect();
            self.ask(&REOPEN, &args).await?;
        }
        Ok(())
    }

    async fn mark_committed(
        &self,
        shard: ShardIndex,
        tally: Tally,
    ) -> Result<Acknowledgement, LeaseError> {
        self.finish(&finish_args(shard, &tally)).await
    }

    async fn claim(&self, owner: &str) -> Result<Claim, LeaseError> {
        let attempt = self.unanswered.attempt(owner);
        let args = [
            attempt.owner.clone(),
            self.lease_ttl_ms(),
            self.options.deliveries_max.to_string(),
            EXPIRED_ERROR.to_owned(),
            RECLAIMED_LEASES_MAX.to_string(),
        ];
        let reply = self.call(&CLAIM, &args).await?;
        let owner = attempt.answered();
        let words: Vec<&str> = reply.iter().map(String::as_str).collect();
        match words[..] {
            ["lease", shard, epoch] => Ok(Claim::Lease(Lease {
                shard: number(shard)?,
                epoch: number(epoch)?,
                owner,
            })),
            ["wait"] => Ok(Claim::Wait),
            ["drained"] => Ok(Claim::Drained),
            ["unknown"] => Ok(Claim::Unknown),
            _ => Err(corrupt(&reply)),
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<Renewal, LeaseError> {
        let [shard, epoch, owner] = lease_args(lease);
        match self
            .ask(&RENEW, &[shard, epoch, owner, self.lease_ttl_ms()])
            .await?
            .as_str()
        {
            "renewed" => Ok(Renewal::Renewed),
            "lost" => Ok(Renewal::Lost),
            other => Err(corrupt(&[other.to_owned()])),
        }
    }

    async fn acknowledge(
        &self,
        lease: &Lease,
        tally: &Tally,
    ) -> Result<Acknowledgement, LeaseError> {
        let [_, epoch, owner] = lease_args(lease);
        let mut args = finish_args(lease.shard, tally);
        args.extend([epoch, owner]);
        self.finish(&args).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.ask(&RELEASE, &lease_args(lease)).await.map(drop)
    }

    async fn fail(
        &self,
        lease: &Lease,
        error: &str,
        permanent: bool,
    ) -> Result<FailOutcome, LeaseError> {
        let deliveries_max = if permanent {
            0
        } else {
            self.options.deliveries_max
        };
        let [shard, epoch, owner] = lease_args(lease);
        let args = [
            shard,
            epoch,
            owner,
            cut_error(error).to_owned(),
            deliveries_max.to_string(),
        ];
        match self.ask(&FAIL, &args).await?.as_str() {
            "requeued" => Ok(FailOutcome::Requeued),
            "dead" => Ok(FailOutcome::Dead),
            "lost" => Ok(FailOutcome::Lost),
            other => Err(corrupt(&[other.to_owned()])),
        }
    }

    async fn snapshot(&self) -> Result<Snapshot, LeaseError> {
        let reply = self.call(&SNAPSHOT, &[]).await?;
        let counts = reply
            .iter()
            .map(|word| number(word))
            .collect::<Result<Vec<u64>, _>>()?;
        let [
            known,
            open,
            leased,
            done,
            dead,
            succeeded,
            failed,
            skipped,
            tokens,
            cost,
        ] = counts[..]
        else {
            return Err(corrupt(&reply));
        };
        let tally = Tally {
            rows: Rows {
                succeeded,
                failed,
                skipped,
            },
            tokens,
            cost: Cost::of_parts(cost),
        };
        Ok(Snapshot {
            known: known == 1,
            open,
            leased,
            done,
            dead,
            tally,
        })
    }

    async fn dead_letters(
        &self,
        first: ShardIndex,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LeaseError> {
        let args = [first.to_string(), limit.to_string()];
        let reply = self.call(&DEAD_LETTERS, &args).await?;
        let (letters, []) = reply.as_chunks::<3>() else {
            return Err(corrupt(&reply));
        };
        letters
            .iter()
            .map(|[shard, deliveries, error]| {
                Ok(DeadLetter {
                    shard: number(shard)?,
                    deliveries: number(deliveries)?,
                    error: error.clone(),
                })
            })
            .collect()
    }
}

fn lease_args(lease: &Lease) -> [String; 3] {
    let Lease {
        shard,
        epoch,
        owner,
    } = lease;
    [shard.to_string(), epoch.to_string(), owner.clone()]
}

fn finish_args(shard: ShardIndex, tally: &Tally) -> Vec<String> {
    let Tally {
        rows: Rows {
            succeeded,
            failed,
            skipped,
        },
        tokens,
        cost,
    } = *tally;
    let cost = cost.parts();
    [u64::from(shard), succeeded, failed, skipped, tokens, cost]
        .iter()
        .map(u64::to_string)
        .collect()
}

pub(crate) fn number<T: std::str::FromStr>(word: &str) -> Result<T, LeaseError> {
    word.parse().map_err(|_| corrupt(&[word.to_owned()]))
}

pub(crate) fn corrupt(reply: &[String]) -> LeaseError {
    let detail = cut_error(&format!("{reply:?}")).to_owned();
    LeaseError::Corrupt(RedisError::from((
        ErrorKind::UnexpectedReturnType,
        "a script gave a reply that is not ours",
        detail,
    )))
}

/// The owner tokens of claims whose reply never came. The next claim of the same worker repeats one
/// of them, and so gets the shard that may have been leased to it instead of a second one.
#[derive(Debug, Default)]
struct UnansweredClaims(Mutex<Vec<String>>);

/// A claim under way. Dropped without an answer (an error, or a caller that stopped waiting), it
/// is unanswered.
struct ClaimAttempt<'a> {
    claims: &'a UnansweredClaims,
    /// `<worker>/<random>`: the worker and this one claim.
    owner: String,
    is_answered: bool,
}

impl UnansweredClaims {
    fn attempt(&self, worker: &str) -> ClaimAttempt<'_> {
        let mut unanswered = self.0.lock().expect("no holder of the list panics");
        let is_ours = |owner: &String| {
            owner
                .rsplit_once('/')
                .is_some_and(|(claimed_by, _)| claimed_by == worker)
        };
        let owner = match unanswered.iter().position(is_ours) {
            Some(index) => unanswered.remove(index),
            None => format!("{worker}/{:032x}", rand::random::<u128>()),
        };
        ClaimAttempt {
            claims: self,
            owner,
            is_answered: false,
        }
    }
}

impl ClaimAttempt<'_> {
    fn answered(mut self) -> String {
        self.is_answered = true;
        std::mem::take(&mut self.owner)
    }
}

impl Drop for ClaimAttempt<'_> {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let mut unanswered = self.claims.0.lock().expect("no holder of the list panics");
        if unanswered.len() == UNANSWERED_CLAIMS_MAX {
            unanswered.remove(0);
        }
        unanswered.push(std::mem::take(&mut self.owner));
    }
}
