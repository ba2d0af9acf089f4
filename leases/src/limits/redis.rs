//! The limits of a service, shared by its workers through a Redis server and kept by that server's
//! clock. One script lets a call in, and one settles it.
//!
//! While the server is away a worker first waits until whatever was let in before counts no more,
//! and then keeps to its own share, so that all workers together stay within the limits.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::Script;
use async_trait::async_trait;
use millrace_protocol::cost::Cost;

use super::{
    Ask, Bill, Grant, Limiter, Limits, MemoryLimiter, Minute, Settlement, Ticket, Verdict, new_id,
};
use crate::redis::Connection;
use crate::{LeaseError, RedisOptions};

/// Wait for a call of some worker to end before asking again.
const CALL_ENDS: Duration = Duration::from_millis(20);

/// Longest pause between two questions: the limits may have changed meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Pause before a server is asked again that was away.
const AWAY: Duration = Duration::from_millis(500);

/// The keys of a service, in the order in which `common.lua` names them.
const KEYS: [&str; 7] = [
    "calls",
    "tokens",
    "in-flight",
    "state",
    "day",
    "accounts",
    "bills",
];

static ASK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        "#!lua\n",
        include_str!("common.lua"),
        include_str!("ask.lua")
    ))
});
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        "#!lua flags=allow-oom\n",
        include_str!("common.lua"),
        include_str!("settle.lua")
    ))
});

/// Lets the calls of all workers of a service in.
pub struct RedisLimiter {
    connection: Connection,
    keys: [String; KEYS.len()],
    minute: Minute,
    own: Mutex<Own>,
    alone: MemoryLimiter,
}

/// The full name of a key of a service's limits.
pub(super) fn key(namespace: &str, service: &str, name: &str) -> String {
    format!("millrace:{{{namespace}/{service}}}:limits:{name}")
}

/// What this worker knows by itself.
#[derive(Debug, Default)]
struct Own {
    /// When the server last let a call in.
    granted_at: Option<Instant>,
    /// Since when the server has been away.
    away_since: Option<Instant>,
    /// When this worker last let a call in by itself.
    alone_at: Option<Instant>,
}

impl RedisLimiter {
    /// The limits of a service. Connects with the first call. Must be called within a tokio runtime.
    pub fn new(
        redis: &RedisOptions,
        namespace: &str,
        service: &str,
        minute: Minute,
    ) -> Result<Self, LeaseError> {
        Ok(Self {
            connection: Connection::new(redis)?,
            keys: KEYS.map(|name| key(namespace, service, name)),
            minute,
            own: Mutex::default(),
            alone: MemoryLimiter::new(minute),
        })
    }

    fn own(&self) -> std::sync::MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn window(&self) -> Duration {
        Duration::from_millis(self.minute.window_ms())
    }

    /// What a worker may do by itself, if anything.
    fn share(ask: &Ask) -> Option<Ask> {
        let Limits {
            requests_per_minute,
            tokens_per_minute,
            requests_per_day,
            concurrency,
        } = ask.limits;
        // Nobody knows alone what others pay meanwhile.
        if ask.bill.as_ref().is_some_and(|bill| bill.max.is_some()) {
            return None;
        }
        let part = |limit: u64| Some(limit / ask.workers_max.max(1)).filter(|&part| part > 0);
        let of = |limit: Option<u64>| match limit {
            None => Some(None),
            Some(limit) => part(limit).map(Some),
        };
        let tokens_per_minute = of(tokens_per_minute)?;
        // What is let in alone because nothing else is would be too much of a share.
        if tokens_per_minute.is_some_and(|max| ask.tokens > max) {
            return None;
        }
        Some(Ask {
            limits: Limits {
                requests_per_minute: of(requests_per_minute)?,
                tokens_per_minute,
                requests_per_day: of(requests_per_day)?,
                concurrency: part(concurrency)?,
            },
            // What nobody is held to is told by the commits.
            bill: None,
            ..ask.clone()
        })
    }

    /// The server is away: whatever was let in before must have left the window first.
    fn ask_alone(&self, ask: &Ask) -> Grant {
        let away = *self.own().away_since.get_or_insert_with(Instant::now);
        let Some(share) = Self::share(ask).filter(|_| away.elapsed() >= self.window()) else {
            return Grant::Wait(AWAY);
        };
        let grant = self.alone.ask_now(&share);
        match grant {
            Grant::Granted(ticket) => {
                self.own().alone_at = Some(Instant::now());
                Grant::Granted(ticket)
            }
            Grant::Wait(wait) => Grant::Wait(wait.min(AWAY)),
            other => other,
        }
    }

    async fn ask_server(&self, ask: &Ask, is_known: bool) -> Result<Grant, LeaseError> {
        let Ask {
            limits,
            tokens,
            workers_max: _,
            call_timeout,
            bill,
        } = ask;
        let Limits {
            requests_per_minute,
            tokens_per_minute,
            requests_per_day,
            concurrency,
        } = limits;
        let id = new_id();
        let mut invocation = ASK.prepare_invoke();
        for key in &self.keys {
            invocation.key(key);
        }
        invocation.arg(&id).arg(tokens);
        for limit in [requests_per_minute, tokens_per_minute, requests_per_day] {
            invocation.arg(limit.unwrap_or(0));
        }
        invocation
            .arg(concurrency)
            .arg(self.minute.window_ms())
            .arg(call_timeout.as_millis() as u64)
            .arg(self.minute.day_piece_ms())
            .arg(Minute::DAY_PIECES)
            .arg(u8::from(is_known));
        match bill {
            None => invocation.arg(""),
            Some(Bill {
                job,
                price,
                max,
                paid,
            }) => {
                let parts = |cost: Option<Cost>| cost.map_or(-1, |cost| cost.parts() as i64);
                let price = price.parts();
                invocation
                    .arg(job)
                    .arg(price)
                    .arg(parts(*max))
                    .arg(parts(*paid))
            }
        };
        let reply: Vec<i64> = self.connection.invoke(&invocation).await?;
        Ok(match reply[..] {
            [0, wait_ms] if wait_ms >= 0 => {
                Grant::Wait(Duration::from_millis(wait_ms as u64).min(WAIT_MAX))
            }
            [0, _] => Grant::Wait(CALL_ENDS),
            [2] => Grant::Unfilled,
            [3] => Grant::Spent,
            _ => Grant::Granted(Ticket {
                id,
                is_alone: false,
            }),
        })
    }

    async fn settle_at_server(&self, id: &str, settlement: &Settlement) -> Result<(), LeaseError> {
        let Settlement {
            tokens,
            cost,
            verdict,
            pause,
            concurrency,
        } = settlement;
        let verdict = match verdict {
            Verdict::Fine => "fine",
            Verdict::TooMuch => "too_much",
            Verdict::Nothing => "nothing",
        };
        let mut invocation = SETTLE.prepare_invoke();
        for key in &self.keys {
            invocation.key(key);
        }
        let actual = tokens.map_or(-1, |tokens| tokens as i64);
        let pause_ms = pause.map_or(0, |pause| pause.as_millis() as u64);
        invocation
            .arg(id)
            .arg(actual)
            .arg(verdict)
            .arg(pause_ms)
            .arg(concurrency)
            .arg(cost.map_or(-1, |cost| cost.parts() as i64));
        self.connection.invoke::<i64>(&invocation).await.map(drop)
    }

    /// Whether the server answers: it is told of the end of a call that there never was.
    async fn is_back(&self) -> bool {
        let nothing = Settlement {
            tokens: None,
            cost: None,
            verdict: Verdict::Nothing,
            pause: None,
            concurrency: 1,
        };
        self.settle_at_server("nobody", &nothing).await.is_ok()
    }
}

#[async_trait]
impl Limiter for RedisLimiter {
    async fn ask(&self, ask: &Ask) -> Result<Grant, LeaseError> {
        let counts = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < self.window());
        let (is_known, is_alone) = {
            let own = self.own();
            (counts(own.granted_at), counts(own.alone_at))
        };
        // The server does not know of the calls that this worker let in by itself, so it is asked
        // again when they count no more.
        if is_alone {
            return Ok(match self.is_back().await {
                true => Grant::Wait(AWAY),
                false => self.ask_alone(ask),
            });
        }
        match self.ask_server(ask, is_known).await {
            Ok(grant) => {
                let mut own = self.own();
                own.away_since = None;
                if matches!(grant, Grant::Granted(_)) {
                    own.granted_at = Some(Instant::now());
                }
                Ok(grant)
            }
            Err(error) if error.is_unavailable() => Ok(self.ask_alone(ask)),
            Err(error) => Err(error),
        }
    }

    async fn settle(&self, ticket: &Ticket, settlement: &Settlement) -> Result<(), LeaseError> {
        if ticket.is_alone {
            self.alone.settle_now(ticket, settlement);
            return Ok(());
        }
        self.settle_at_server(&ticket.id, settlement).await
    }
}
