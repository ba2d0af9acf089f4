//! The limits of an API that all workers and jobs of a service share: requests and tokens in any
//! minute, or out of a bucket that a minute refills, requests and tokens in any day, and calls at one
//! time. And what each job may pay.
//!
//! A call is let in by one atomic step that looks at all limits, and settled when it has ended: its
//! tokens are corrected, and what the API said of itself is believed. Calls at one time go down by
//! half when the API says that it is too much, to one after the other at worst, and grow again with
//! each call that went well.
//!
//! A call is paid for when it is let in, by a guess, and the guess is corrected when it has ended. What
//! a job has paid is known until somebody forgets it; then whoever asks has to say what it was at least.

mod accounts;
mod bucket;
mod day;
mod gradient;
mod memory;
mod redis;
mod state;

use std::time::Duration;

use async_trait::async_trait;
use millrace_protocol::cost::Cost;

use crate::LeaseError;

pub use self::accounts::{Account, Accounts};
pub use self::memory::MemoryLimiter;
pub use self::redis::RedisLimiter;

/// What an API allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How requests and tokens of a minute are counted.
    pub algorithm: Algorithm,
    /// Most requests of a minute.
    pub requests_per_minute: Option<PerMinute>,
    /// Most tokens of a minute.
    pub tokens_per_minute: Option<PerMinute>,
    /// Most requests in any day.
    pub requests_per_day: Option<u64>,
    /// Most tokens in any day.
    pub tokens_per_day: Option<u64>,
    /// Most calls at one time, at least 1.
    pub concurrency: u64,
}

/// How an API counts what it lets in in a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Any minute holds no more than one may.
    SlidingWindow,
    /// It is taken out of a bucket, which is refilled evenly.
    TokenBucket,
}

/// What a minute allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerMinute {
    /// Most in any minute; of a bucket, what a minute refills.
    pub most: u64,
    /// What a full bucket lets in at once; more than `most` counts as that. A window knows none.
    pub burst: u64,
}

impl PerMinute {
    /// So much in any minute, and at once.
    pub fn of(most: u64) -> Self {
        Self { most, burst: most }
    }
}

/// What an API itself said of what it lets in in a minute, as far as it said anything: with an answer that went
/// well, everything that still holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Most requests.
    pub requests: Option<u64>,
    /// Most tokens.
    pub tokens: Option<u64>,
}

impl Limits {
    /// The same, where the API allows less.
    pub(crate) fn within(self, allowed: Allowed) -> Self {
        let lower = |limit: Option<PerMinute>, allowed: Option<u64>| match (limit, allowed) {
            (Some(PerMinute { most, burst }), Some(allowed)) => Some(PerMinute {
                most: most.min(allowed),
                burst,
            }),
            (limit, allowed) => limit.or(allowed.map(PerMinute::of)),
        };
        let Allowed { requests, tokens } = allowed;
        Self {
            requests_per_minute: lower(self.requests_per_minute, requests),
            tokens_per_minute: lower(self.tokens_per_minute, tokens),
            ..self
        }
    }
}

/// How long a minute of a limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute {
    length: Duration,
}

impl Minute {
    /// A minute of this length; another one than sixty seconds means a rehearsal in which time passes
    /// faster.
    pub fn of(length: Duration) -> Self {
        Self { length }
    }

    /// How long a call counts, in milliseconds: a little longer than a minute, since the API counts
    /// from when it hears of a call, which varies.
    pub(crate) fn window_ms(self) -> u64 {
        let ms = self.length.as_millis() as u64;
        ms + ms / 50
    }

    /// The length of a piece of a day, of which [`Self::DAY_PIECES`] make one.
    pub(crate) fn day_piece_ms(self) -> u64 {
        (self.length.as_millis() as u64 * 1_440 / Self::DAY_PIECES).max(1)
    }

    /// Pieces of a day. A day is counted in pieces, and one more than make a day counts, so that no
    /// day holds too many.
    pub(crate) const DAY_PIECES: u64 = 96;
}

impl Default for Minute {
    fn default() -> Self {
        Self::of(Duration::from_secs(60))
    }
}

/// A call that wants to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What the API allows.
    pub limits: Limits,
    /// Tokens that the call will take at most, as far as one can tell.
    pub tokens: u64,
    /// Longest that the call can take; after that it counts as ended whatever became of its caller.
    pub call_timeout: Duration,
    /// Who pays for it, where the API has prices.
    pub bill: Option<Bill>,
}

/// Who pays for a call, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// The job, by its [`account`].
    pub job: String,
    /// What the call will cost, as far as one can tell.
    pub price: Cost,
    /// Most that the job may pay. When it is about to be reached, calls are made one after the other,
    /// so that no more than one goes beyond it by more than was guessed too low.
    pub max: Option<Cost>,
    /// What the job has paid at least, by its commits; `None` until [`Grant::Unfilled`] asks for it.
    pub paid: Option<Cost>,
}

/// Under which name the accounts are kept of jobs that ask several services: no service can have it.
pub const ACCOUNTS_OF_SEVERAL: &str = "jobs:several";

/// The name of a job's account: that of the next job of its name is another one.
pub fn account(job: &str, uid: Option<&str>) -> String {
    format!("{job}/{}", uid.unwrap_or_default())
}

/// What became of a wish to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// The call may be made now, and must be settled.
    Granted(Ticket),
    /// Ask again after this time, or once a call has ended.
    Wait(Duration),
    /// Nobody knows what the job has paid: ask again and say it.
    Unfilled,
    /// The job has paid what it may, and none of its calls is being made.
    Spent,
}

/// A call that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) id: String,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// Tokens that it took; `None` where nobody knows, and what was asked for stands.
    pub tokens: Option<u64>,
    /// What it cost; `None` where nobody knows, and what was guessed stands.
    pub cost: Option<Cost>,
    /// What it says of how many calls the API bears at a time.
    pub verdict: Verdict,
    /// How long no call may be made from now on, as the API said.
    pub pause: Option<Duration>,
    /// What the API said that it lets in: all calls from now on keep to what is lower than their limits.
    pub allowed: Allowed,
    /// Most calls at one time that the service allows.
    pub concurrency: u64,
}

/// What a call says of how many the API bears at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered: there may be more.
    Fine,
    /// The API said that it is too much: there must be fewer.
    TooMuch,
    /// It failed for another reason, which says nothing.
    Nothing,
}

/// Lets calls in.
#[async_trait]
pub trait Limiter: Send + Sync {
    /// Lets a call in, or says how long to wait.
    async fn ask(&self, ask: &Ask) -> Result<Grant, LeaseError>;

    /// Ends a call. May be repeated; a repetition changes nothing more. What those who share the limits
    /// cannot be told now they are told before the next call is let in.
    async fn settle(&self, ticket: &Ticket, settlement: &Settlement) -> Result<(), LeaseError>;
}

fn new_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}
