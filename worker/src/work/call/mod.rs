//! Gets an answer for every row from an API elsewhere: several rows in a call, several calls at a
//! time, within the limits that all callers share.
//!
//! A call that fails is tried again after a while, then split; rows whose answers cannot be told
//! apart are asked alone. Nothing that one row does keeps another from its answer.

mod caches;
mod gate;
pub mod guess;
mod pace;
mod pass;
pub mod purse;
mod recall;
pub mod receipts;
mod tries;
mod vectors;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_answers::Cache;
use millrace_crds::inference_service::{self, LimitAlgorithm, RemoteLimits};
use millrace_leases::LeaseError;
use millrace_leases::limits::{Algorithm, Ask, Limits, Minute, PerMinute};
use millrace_protocol::row::RowError;
use millrace_protocol::tally::{Rows, Tally};
use millrace_telemetry::chain;

pub use self::caches::{Caches, CachesOptions};
use self::gate::{Entered, Turn};
pub use self::gate::{Gate, Gates};
use self::guess::Guess;
use self::pace::{Pace, PaceOptions, Seen};
use self::pass::Pass;
use self::purse::Purse;
use self::receipts::ReceiptsOf;
use super::client::remote::{Access, Api, ApiError, Credentials, Usage};
use super::submit::{Answered, RowOutcome, SubmitError};
use crate::job::{Remote, Retry, Step};
use crate::metrics::Calls;
use crate::prompt::Prompts;

/// How often it is said that an API is not reached.
const AWAY_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// How long after the end of a call it counts as made if its caller does not say that it has ended.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// Milliseconds that a minute of limits lasts, in a rehearsal whose API's time passes faster.
const MINUTE_VARIABLE: &str = "MILLRACE_MINUTE_MS";

/// How long a minute of limits is: `MILLRACE_MINUTE_MS` makes it another one than sixty seconds, for a
/// rehearsal against a stand-in whose time passes faster.
pub fn minute_from_env() -> Minute {
    let named = std::env::var(MINUTE_VARIABLE).ok();
    let ms = named.and_then(|ms| ms.parse().ok()).filter(|&ms| ms > 0);
    ms.map_or(Minute::default(), |ms| {
        Minute::of(Duration::from_millis(ms))
    })
}

/// The limits of a job's account, which has none but the job's budget.
const UNLIMITED: Limits = Limits {
    algorithm: Algorithm::SlidingWindow,
    requests_per_minute: None,
    tokens_per_minute: None,
    requests_per_day: None,
    tokens_per_day: None,
    concurrency: 1_000_000,
};

/// How a caller behaves.
pub struct CallerOptions {
    /// How often a row is tried again.
    pub retry: Retry,
    /// Longest wait for an API that cannot be reached.
    pub patience: Duration,
    /// Who pays, where the service names prices.
    pub purse: Option<Purse>,
    /// Where the job's account is kept, if it has several services: else it is kept with the limits of
    /// the one.
    pub account: Option<Arc<Gate>>,
}

/// Asks one API about the rows of one job.
pub struct Caller {
    api: Api,
    prompts: Prompts,
    steps: Vec<Step>,
    gate: Arc<Gate>,
    /// Where answers are kept, if they are.
    cache: Option<Arc<Cache>>,
    metrics: Calls,
    remote: Remote,
    options: CallerOptions,
    pace: Mutex<Pace>,
    guess: Mutex<Guess>,
    /// When somebody was last told that the API is not reached.
    away_told: Mutex<Option<Instant>>,
}

impl Caller {
    /// A caller for the steps of a job whose text stands in `text_field`.
    pub fn new(
        remote: &Remote,
        steps: Vec<Step>,
        text_field: &str,
        access: &Access,
        options: CallerOptions,
    ) -> Result<Self, ApiError> {
        let spec = &remote.spec;
        let unusable = |error: &dyn std::error::Error| ApiError::Unusable(chain(error));
        let credentials = Credentials::find(spec, &access.secrets)?;
        let prompts = Prompts::new(steps.iter().map(Step::template), text_field);
        Ok(Self {
            api: Api::new(spec, &steps, credentials, access.link_local)?,
            prompts: prompts.expect("the job was checked"),
            pace: Mutex::new(Pace::new(pace(spec))),
            guess: Mutex::new(Guess::new(&steps)),
            away_told: Mutex::default(),
            steps,
            metrics: access.metrics.calls(),
            cache: (access.caches.of(remote)).map_err(|error| unusable(&error))?,
            gate: (access.gates.of(&remote.service)).map_err(|error| unusable(&error))?,
            remote: remote.clone(),
            options,
        })
    }

    /// What tells the results of the model from those of another.
    pub fn identity(&self) -> String {
        self.api.identity()
    }

    /// Answers every row, which is its text or the fields that prompts are made of. What `receipts`
    /// know is not asked again. `tell` hears on the way of what became of rows, and of what it took.
    pub async fn answer(
        &self,
        rows: &[String],
        receipts: ReceiptsOf<'_>,
        tell: impl Fn(Tally),
    ) -> Result<Answered, SubmitError> {
        let mut outcomes: Vec<RowOutcome> = rows.iter().map(|_| Ok(Vec::new())).collect();
        let mut taken = Tally::default();
        for (step, Step { name, .. }) in self.steps.iter().enumerate() {
            let of_step = |error: RowError| RowError {
                step: Some(name.clone()),
                ..error
            };
            let mut prompts = Vec::new();
            for (row, outcome) in outcomes.iter_mut().enumerate() {
                if outcome.is_err() {
                    continue;
                }
                match self.prompts.render(step, &rows[row]) {
                    Ok(prompt) => prompts.push((row, prompt)),
                    Err(error) => {
                        *outcome = Err(of_step(error));
                        tell(ended(0, 1));
                    }
                }
            }
            let is_last = step + 1 == self.steps.len();
            let (row_of, prompts): (Vec<usize>, Vec<String>) = prompts.into_iter().unzip();
            let pass = Pass::new(self, step, &prompts, receipts);
            taken += pass
                .run(
                    |prompt, said| {
                        let outcome = &mut outcomes[row_of[prompt]];
                        match said {
                            Ok(prediction) => {
                                outcome.as_mut().expect("it was asked").push(prediction);
                            }
                            Err(error) => *outcome = Err(of_step(error)),
                        }
                        let failed = u64::from(outcome.is_err());
                        let succeeded = u64::from(is_last && outcome.is_ok());
                        tell(ended(succeeded, failed));
                    },
                    &tell,
                )
                .await?;
        }
        Ok(Answered {
            outcomes,
            tokens: taken.tokens,
            cost: taken.cost,
        })
    }

    /// Waits until a call that takes about so much may be made.
    async fn enter(&self, guessed: Usage) -> Result<Entered, SubmitError> {
        let ask = self.ask(guessed);
        let Some(account) = &self.options.account else {
            return self.enter_at(&self.gate, ask).await;
        };
        // The service's limits may take longer than any call, and what a call costs is set aside for as
        // long as a call may take: so that comes last.
        let unpaid = Ask {
            bill: None,
            ..ask.clone()
        };
        let entered = self.enter_at(&self.gate, unpaid).await?.unpaid();
        let paid = Ask {
            limits: UNLIMITED,
            tokens: 0,
            ..ask
        };
        let paid = self.enter_at(account, paid).await?;
        Ok(entered.paid_at(paid))
    }

    async fn enter_at(&self, gate: &Arc<Gate>, mut ask: Ask) -> Result<Entered, SubmitError> {
        let limits = |error| SubmitError::Limits(LimitsError(error));
        loop {
            match gate.enter(&ask).await.map_err(limits)? {
                Turn::Entered(entered) => return Ok(entered),
                Turn::Spent => return Err(SubmitError::Spent),
                Turn::Unfilled => {
                    let (purse, bill) = (&self.options.purse, &mut ask.bill);
                    if let (Some(purse), Some(bill)) = (purse, bill) {
                        bill.paid = Some(purse.paid().await.map_err(Box::new)?);
                    }
                }
            }
        }
    }

    /// A call's wish to be let in.
    fn ask(&self, guessed: Usage) -> Ask {
        Ask {
            limits: limits(&self.remote.spec.limits),
            tokens: guessed.total(),
            call_timeout: self.remote.spec.call_time_max() + SETTLED_WITHIN,
            bill: self.options.purse.as_ref().map(|purse| purse.bill(guessed)),
        }
    }

    /// Says that the API is not reached, once for all calls, and again after a while.
    fn tell_away(&self, words: &str) {
        let mut told = (self.away_told.lock()).unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= AWAY_WARNING_INTERVAL) {
            *told = Some(Instant::now());
            let url = &self.remote.spec.base_url;
            let patience_seconds = self.options.patience.as_secs();
            tracing::warn!(
                url,
                error = words,
                patience_seconds,
                "the API is not reached"
            );
        }
    }

    /// Learns from a call that was answered: how many bytes were sent for which tokens, and how long it took.
    fn learn(&self, bytes: usize, usage: Option<Usage>, seen: Seen) {
        if let Some(usage) = usage {
            self.guess().learn(bytes, seen.rows, usage);
        }
        self.pace().see(seen);
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guess(&self) -> std::sync::MutexGuard<'_, Guess> {
        self.guess.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows that ended, of which nothing was taken.
fn ended(succeeded: u64, failed: u64) -> Tally {
    Tally {
        rows: Rows {
            succeeded,
            failed,
            skipped: 0,
        },
        ..Tally::default()
    }
}

/// What a service allows.
fn limits(limits: &RemoteLimits) -> Limits {
    let RemoteLimits {
        algorithm,
        requests_per_minute,
        requests_burst,
        tokens_per_minute,
        tokens_burst,
        requests_per_day,
        tokens_per_day,
        concurrency,
    } = *limits;
    let per_minute = |most: u64, burst: Option<u64>| PerMinute {
        most,
        burst: burst.unwrap_or(most),
    };
    let requests = requests_per_minute.map(u64::from);
    Limits {
        algorithm: match algorithm {
            LimitAlgorithm::SlidingWindow => Algorithm::SlidingWindow,
            LimitAlgorithm::TokenBucket => Algorithm::TokenBucket,
        },
        requests_per_minute: requests.map(|most| per_minute(most, requests_burst.map(u64::from))),
        tokens_per_minute: tokens_per_minute.map(|most| per_minute(most, tokens_burst)),
        requests_per_day: requests_per_day.map(u64::from),
        tokens_per_day,
        concurrency: u64::from(concurrency),
    }
}

/// How far the rows of a call may grow. Where nothing bounds the calls of a minute, as many as may be made
/// at a time should fit into it.
fn pace(spec: &inference_service::Remote) -> PaceOptions {
    let limits = &spec.limits;
    let calls = limits.requests_per_minute.unwrap_or(limits.concurrency);
    let call_tokens_max = |tokens| tokens as f64 / f64::from(calls);
    PaceOptions {
        rows: spec.rows_per_call(),
        rows_max: spec.rows_per_call_max,
        call_time_max: spec.call_time_max(),
        call_tokens_max: limits.tokens_per_minute.map(call_tokens_max),
    }
}

/// The limits of an API could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("the limits of the API cannot be kept")]
pub struct LimitsError(#[from] LeaseError);
