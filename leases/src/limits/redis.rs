//! The limits of a service, shared by its workers through a Redis server and kept by that server's
//! clock. One script lets a call in, and one settles it.
//!
//! While the server is away no call is let in, as no shard is claimed or prolonged then: what one worker
//! lets in alone others cannot count.
//!
//! Whatever a worker says to the server tells that it is alive. One that makes calls and has nothing to
//! say for a while says just that, so that the calls of one that is dead are soon counted no more.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{FromRedisValue, Script, ScriptInvocation};
use async_trait::async_trait;
use millrace_protocol::cost::Cost;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::bucket::{MARGIN, MARGIN_MAX};
use super::{
    Algorithm, Allowed, Ask, Bill, Grant, Limiter, Limits, Minute, PerMinute, Settlement, Ticket,
    Verdict, new_id,
};
use crate::redis::{Connection, corrupt, number};
use crate::{LeaseError, RedisOptions};

/// Wait for a call of some worker to end before asking again.
const CALL_ENDS: Duration = Duration::from_millis(20);

/// Longest pause between two questions: the limits may have changed meanwhile, and a server that forgot
/// what it let in learns so from whoever asks.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Pause before a server is asked again that was away.
const AWAY: Duration = Duration::from_millis(500);

/// How often a worker that makes calls is heard of at least, or nearly: a few times within the time after
/// which it would be taken for dead.
const ALIVE: Duration = Duration::from_secs(1);

/// Calls whose end the server has not heard of that are remembered: more than are in flight at a time.
/// One that is forgotten counts as being made until its time-out.
const UNTOLD_MAX: usize = 4_096;

/// The keys of a service, in the order in which `common.lua` names them.
const KEYS: [&str; 12] = [
    "calls",
    "tokens",
    "in-flight",
    "state",
    "day",
    "accounts",
    "bills",
    "guesses",
    "day-tokens",
    "workers",
    "held",
    "gradient",
];

static ASK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        "#!lua\n",
        include_str!("common.lua"),
        include_str!("gradient.lua"),
        include_str!("ask.lua")
    ))
});
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        "#!lua flags=allow-oom\n",
        include_str!("common.lua"),
        include_str!("gradient.lua"),
        include_str!("settle.lua")
    ))
});

static TELL_ALIVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        "#!lua flags=allow-oom\n",
        include_str!("common.lua"),
        include_str!("alive.lua")
    ))
});

/// Lets the calls of all workers of a service in.
pub struct RedisLimiter {
    server: Arc<Server>,
    /// Ends with the limiter, whose calls are made no more then.
    _telling_alive: AbortOnDropHandle<()>,
}

/// The server, as one worker knows it.
struct Server {
    connection: Connection,
    keys: [String; KEYS.len()],
    minute: Minute,
    /// Name of the worker, which begins the names of its calls.
    worker: String,
    own: Mutex<Own>,
}

/// The full name of a key of a service's limits.
pub(super) fn key(namespace: &str, service: &str, name: &str) -> String {
    format!("millrace:{{{namespace}/{service}}}:limits:{name}")
}

/// What this worker knows by itself.
#[derive(Debug, Default)]
struct Own {
    /// The last call that the server let in.
    granted: Option<Granted>,
    /// Calls whose end the server has not heard of, oldest first.
    untold: VecDeque<(String, Settlement)>,
    /// Calls that are being made.
    open: HashSet<String>,
    /// When the server last heard of this worker.
    heard_at: Option<Instant>,
}

/// What the server said when it let a call in.
#[derive(Debug, Clone)]
struct Granted {
    at: Instant,
    /// Tells what the server kept then from what it has kept since it forgot.
    generation: String,
    /// How many calls it had let in.
    count: u64,
}

impl Own {
    /// Whether the server takes its calls for those of a dead worker unless it is told better.
    fn is_silent(&self) -> bool {
        let is_heard = self.heard_at.is_some_and(|at| at.elapsed() < ALIVE);
        !self.open.is_empty() && !is_heard
    }

    fn tell_later(&mut self, id: &str, settlement: Settlement) {
        if self.untold.len() == UNTOLD_MAX {
            self.untold.pop_front();
        }
        self.untold.push_back((id.to_owned(), settlement));
    }
}

/// A question under way. Dropped without an answer (an error, or a caller that stopped waiting), its call
/// may have been let in, and is never made.
struct Question<'a> {
    own: &'a Mutex<Own>,
    id: String,
    concurrency: u64,
    is_answered: bool,
}

/// A settlement that is being told. Dropped before the server heard of it, it is told later.
struct Telling<'a> {
    own: &'a Mutex<Own>,
    id: &'a str,
    untold: Option<Settlement>,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if let Some(settlement) = self.untold.take() {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.tell_later(self.id, settlement);
        }
    }
}

impl Question<'_> {
    fn answered(mut self) -> String {
        self.is_answered = true;
        std::mem::take(&mut self.id)
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let unmade = Settlement {
            tokens: Some(0),
            cost: Some(Cost::NOTHING),
            verdict: Verdict::Nothing,
            pause: None,
            allowed: Allowed::default(),
            concurrency: self.concurrency,
        };
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.tell_later(&self.id, unmade);
    }
}

impl RedisLimiter {
    /// The limits of a service. Connects with the first call. Must be called within a tokio runtime.
    pub fn new(
        redis: &RedisOptions,
        namespace: &str,
        service: &str,
        minute: Minute,
    ) -> Result<Self, LeaseError> {
        let server = Arc::new(Server {
            connection: Connection::new(redis)?,
            keys: KEYS.map(|name| key(namespace, service, name)),
            minute,
            worker: new_id(),
            own: Mutex::default(),
        });
        let telling_alive = tokio::spawn(tell_alive(server.clone()));
        Ok(Self {
            server,
            _telling_alive: AbortOnDropHandle::new(telling_alive),
        })
    }
}

/// Has the server hear of this worker while it makes calls.
async fn tell_alive(server: Arc<Server>) {
    let mut ticks = tokio::time::interval(ALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if server.own().is_silent() {
            // A server that does not hear of it is told with the next tick.
            server.tell_alive().await.ok();
        }
    }
}

impl Server {
    fn own(&self) -> std::sync::MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last of this worker's calls, if it may still count.
    fn known(&self) -> Option<Granted> {
        let window = Duration::from_millis(self.minute.window_ms());
        let granted = self.own().granted.clone();
        granted.filter(|granted| granted.at.elapsed() < window)
    }

    async fn ask(&self, ask: &Ask) -> Result<Grant, LeaseError> {
        let question = Question {
            own: &self.own,
            id: format!("{}-{}", self.worker, new_id()),
            concurrency: ask.limits.concurrency,
            is_answered: false,
        };
        let known = self.known();
        let mut invocation = self.invocation(&ASK);
        invocation.arg(to_ask(&question.id, ask, self.minute, known.as_ref()));
        let reply: Vec<String> = self.invoke(&invocation).await?;
        let words: Vec<&str> = reply.iter().map(String::as_str).collect();
        let grant = match words[..] {
            ["granted", generation, count] => {
                let granted = Granted {
                    at: Instant::now(),
                    generation: generation.to_owned(),
                    count: number(count)?,
                };
                let id = question.answered();
                let mut own = self.own();
                own.granted = Some(granted);
                own.open.insert(id.clone());
                return Ok(Grant::Granted(Ticket { id }));
            }
            ["wait", "-1"] => Grant::Wait(CALL_ENDS),
            ["wait", ms] => Grant::Wait(Duration::from_millis(number(ms)?).min(WAIT_MAX)),
            ["unfilled"] => Grant::Unfilled,
            ["spent"] => Grant::Spent,
            _ => return Err(corrupt(&reply)),
        };
        question.answered();
        Ok(grant)
    }

    /// Tells the server of the ends of calls that it has not heard of. Each may be told twice.
    async fn tell_untold(&self) -> Result<(), LeaseError> {
        loop {
            let Some((id, settlement)) = self.own().untold.front().cloned() else {
                return Ok(());
            };
            self.settle(&id, &settlement).await?;
            self.own().untold.retain(|(untold, _)| *untold != id);
        }
    }

    async fn settle(&self, id: &str, settlement: &Settlement) -> Result<(), LeaseError> {
        let mut invocation = self.invocation(&SETTLE);
        invocation.arg(to_settle(id, settlement));
        self.invoke::<i64>(&invocation).await.map(drop)
    }

    async fn tell_alive(&self) -> Result<(), LeaseError> {
        let mut invocation = self.invocation(&TELL_ALIVE);
        invocation.arg(&self.worker);
        self.invoke::<i64>(&invocation).await.map(drop)
    }

    fn invocation<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut invocation = script.prepare_invoke();
        for key in &self.keys {
            invocation.key(key);
        }
        invocation
    }

    async fn invoke<T: FromRedisValue>(
        &self,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<T, LeaseError> {
        let reply = self.connection.invoke(invocation).await?;
        self.own().heard_at = Some(Instant::now());
        Ok(reply)
    }
}

/// What `ask.lua` is told of a call, in the order in which it takes it.
fn to_ask(id: &str, ask: &Ask, minute: Minute, known: Option<&Granted>) -> Vec<String> {
    let Ask {
        limits,
        tokens,
        call_timeout,
        bill,
    } = ask;
    let Limits {
        algorithm,
        requests_per_minute,
        tokens_per_minute,
        requests_per_day,
        tokens_per_day,
        concurrency,
    } = *limits;
    let most = |limit: Option<PerMinute>| limit.map(|limit| limit.most);
    let numbers = [
        *tokens,
        most(requests_per_minute).unwrap_or(0),
        most(tokens_per_minute).unwrap_or(0),
        requests_per_day.unwrap_or(0),
        tokens_per_day.unwrap_or(0),
        concurrency,
        minute.window_ms(),
        call_timeout.as_millis() as u64,
        minute.day_piece_ms(),
        Minute::DAY_PIECES,
    ];
    let mut told = vec![id.to_owned()];
    told.extend(numbers.map(|number| number.to_string()));
    told.push(match algorithm {
        Algorithm::SlidingWindow => "window".to_owned(),
        Algorithm::TokenBucket => "bucket".to_owned(),
    });
    for limit in [requests_per_minute, tokens_per_minute] {
        told.push(limit.map_or(0, |limit| limit.burst).to_string());
    }
    told.extend([MARGIN, MARGIN_MAX].map(|margin| margin.to_string()));
    told.push(known.map_or(String::new(), |known| known.generation.clone()));
    told.push(known.map_or(0, |known| known.count).to_string());
    match bill {
        None => told.push(String::new()),
        Some(Bill {
            job,
            price,
            max,
            paid,
        }) => told.extend([
            job.clone(),
            price.parts().to_string(),
            parts(*max),
            parts(*paid),
        ]),
    }
    told
}

/// The same of `settle.lua`.
fn to_settle(id: &str, settlement: &Settlement) -> Vec<String> {
    let Settlement {
        tokens,
        cost,
        verdict,
        pause,
        allowed,
        concurrency,
    } = settlement;
    let Allowed {
        requests: requests_allowed,
        tokens: tokens_allowed,
    } = allowed;
    let verdict = match verdict {
        Verdict::Fine => "fine",
        Verdict::TooMuch => "too_much",
        Verdict::Nothing => "nothing",
    };
    vec![
        id.to_owned(),
        tokens.map_or("-1".to_owned(), |tokens| tokens.to_string()),
        verdict.to_owned(),
        pause
            .map_or(0, |pause| pause.as_millis() as u64)
            .to_string(),
        concurrency.to_string(),
        parts(*cost),
        requests_allowed.unwrap_or(0).to_string(),
        tokens_allowed.unwrap_or(0).to_string(),
    ]
}

/// Money as the scripts take it: -1 is none.
fn parts(cost: Option<Cost>) -> String {
    cost.map_or("-1".to_owned(), |cost| cost.parts().to_string())
}

#[async_trait]
impl Limiter for RedisLimiter {
    async fn ask(&self, ask: &Ask) -> Result<Grant, LeaseError> {
        let answer = async {
            self.server.tell_untold().await?;
            self.server.ask(ask).await
        };
        match answer.await {
            Err(error) if error.is_unavailable() => Ok(Grant::Wait(AWAY)),
            answer => answer,
        }
    }

    async fn settle(&self, ticket: &Ticket, settlement: &Settlement) -> Result<(), LeaseError> {
        self.server.own().open.remove(&ticket.id);
        let mut telling = Telling {
            own: &self.server.own,
            id: &ticket.id,
            untold: Some(*settlement),
        };
        match self.server.settle(&ticket.id, settlement).await {
            Err(error) if error.is_unavailable() => Ok(()),
            told => {
                telling.untold = None;
                told
            }
        }
    }
}

#[cfg(test)]
#[path = "redis_tests.rs"]
mod tests;
