//! Gets an answer for every row of a chunk: retries what the moment spoiled, and finds the row that
//! kills the server.
//!
//! When the server dies, every chunk in flight is a suspect. Suspects are sent again one at a time,
//! alone; a chunk that kills the server alone is halved until one row is left, and a row that kills
//! it twice on its own is quarantined with a reason.

mod chunks;

use std::ops::Range;
use std::time::{Duration, Instant};

use millrace_protocol::cost::Cost;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::{ModelReply, Prediction, RowsReply, RowsRequest};
use tokio::sync::{RwLock, Semaphore};

use super::call::LimitsError;
use super::call::purse::PaidError;
use super::client::remote::ApiError;
use super::client::{Client, ClientError};
use crate::job::{Retry, Step, models};

/// How often a row may kill the server all alone before it is quarantined. Twice, because the
/// first death may have had another reason.
const LONE_DEATHS_MAX: u32 = 2;

/// How often a chunk that a full server keeps waiting says so.
const FULL_WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// Why rows could not be answered at all: nothing is wrong with the rows.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The server did not come back.
    #[error("the inference-server did not come back")]
    ServerAway(#[source] ClientError),
    /// The server does not do what the job asks.
    #[error("the inference-server refused the job's rows")]
    Refused(#[source] ClientError),
    /// The API elsewhere does not answer.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Calls may not be made.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// It is not known whether calls may be made.
    #[error("what the job has paid could not be read")]
    Paid(#[from] Box<PaidError>),
    /// No further call may be made.
    #[error("spec.budget.maxCost is spent")]
    Spent,
}

/// What became of one row: one prediction per step, or the reason why not.
pub type RowOutcome = Result<Vec<Prediction>, RowError>;

/// The outcomes of a chunk, in the order of its texts.
#[derive(Debug, Default)]
pub struct Answered {
    /// One outcome per text.
    pub outcomes: Vec<RowOutcome>,
    /// Tokens that went through models.
    pub tokens: u64,
    /// What calls of a paid API cost.
    pub cost: Cost,
}

/// How a submitter behaves.
#[derive(Debug, Clone)]
pub struct SubmitOptions {
    /// How often a row is tried again.
    pub retry: Retry,
    /// Most chunks at the server at a time: enough to keep its queue full while one batch runs and
    /// one is prefetched, and few enough that finding a killer among them is quick.
    pub chunks_in_flight_max: usize,
    /// Longest wait for a server that is starting again.
    pub server_patience: Duration,
}

/// Sends chunks to one inference-server, shared by all shards of a worker.
pub struct Submitter {
    client: Client,
    steps: Vec<Step>,
    /// The models of the steps, each once.
    models: Vec<String>,
    options: SubmitOptions,
    slots: Semaphore,
    /// Held shared by chunks in flight and alone by a suspect.
    suspicion: RwLock<()>,
}

/// One delivery: an outcome for every row, or what each row ends with if it was alone in it.
enum Delivery {
    Answered(Answered),
    /// The server died under it.
    Died(RowError),
    /// The server takes no request with all its rows.
    Refused(RowError),
}

/// Why a request was not answered as it was.
enum Untaken {
    /// The server died under it, or did not answer.
    Died(RowError),
    /// The server takes no request with all its rows.
    Refused(RowError),
    /// It did not reach the server in time.
    Late(RowError),
}

/// The outcomes of a chunk that is delivered in pieces.
struct Pieces {
    outcomes: Vec<Option<RowOutcome>>,
    tokens: u64,
}

impl Pieces {
    fn of(rows: usize) -> Self {
        Self {
            outcomes: (0..rows).map(|_| None).collect(),
            tokens: 0,
        }
    }

    fn put(&mut self, range: Range<usize>, answered: Answered) {
        self.tokens += answered.tokens;
        for (index, outcome) in range.zip(answered.outcomes) {
            self.outcomes[index] = Some(outcome);
        }
    }

    fn fail(&mut self, row: usize, error: RowError) {
        self.outcomes[row] = Some(Err(error));
    }

    fn whole(self) -> Answered {
        let outcomes = self.outcomes.into_iter();
        Answered {
            outcomes: outcomes
                .map(|outcome| outcome.expect("all rows were asked"))
                .collect(),
            tokens: self.tokens,
            cost: Cost::default(),
        }
    }
}

impl Submitter {
    /// A submitter that asks for the models of `steps`.
    pub fn new(client: Client, steps: Vec<Step>, options: SubmitOptions) -> Self {
        let slots = Semaphore::new(options.chunks_in_flight_max);
        Self {
            client,
            models: models(&steps),
            steps,
            options,
            slots,
            suspicion: RwLock::new(()),
        }
    }

    /// Answers every text. Between two tries a chunk holds no slot.
    pub async fn submit(&self, texts: Vec<String>) -> Result<Answered, SubmitError> {
        let mut answered = self.deliver(&texts).await?;
        for attempt in 1..self.options.retry.attempts_max {
            let open = retryable(&answered.outcomes);
            if open.is_empty() {
                break;
            }
            tokio::time::sleep(backoff(&self.options.retry, attempt)).await;
            let again = open
                .iter()
                .map(|&index| texts[index].clone())
                .collect::<Vec<_>>();
            let retried = self.deliver(&again).await?;
            answered.tokens += retried.tokens;
            for (index, outcome) in open.into_iter().zip(retried.outcomes) {
                answered.outcomes[index] = outcome;
            }
        }
        Ok(answered)
    }

    /// Delivers once, in as many pieces as it takes and whatever the server dies of.
    async fn deliver(&self, texts: &[String]) -> Result<Answered, SubmitError> {
        let _slot = self
            .slots
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let mut pieces = Pieces::of(texts.len());
        // The last one first: what is pushed last is popped first.
        let mut open = batches(texts.len(), self.client.batch_rows_max());
        open.reverse();
        while let Some(range) = open.pop() {
            let delivery = {
                let _in_company = self.suspicion.read().await;
                self.ask(&texts[range.clone()]).await?
            };
            match delivery {
                Delivery::Answered(answered) => pieces.put(range, answered),
                Delivery::Refused(_) if range.len() > 1 => open.extend(halves(&range)),
                Delivery::Refused(error) => pieces.fail(range.start, error),
                Delivery::Died(_) => {
                    let _alone = self.suspicion.write().await;
                    let answered = self.isolate(&texts[range.clone()]).await?;
                    pieces.put(range, answered);
                }
            }
        }
        Ok(pieces.whole())
    }

    /// Bisects `texts` until every row is answered or known to kill the server.
    async fn isolate(&self, texts: &[String]) -> Result<Answered, SubmitError> {
        let mut pieces = Pieces::of(texts.len());
        let mut suspects: Vec<(Range<usize>, u32)> = vec![(0..texts.len(), 0)];
        while let Some((range, deaths)) = suspects.pop() {
            self.ready().await?;
            match self.ask(&texts[range.clone()]).await? {
                Delivery::Answered(answered) => pieces.put(range, answered),
                Delivery::Died(_) | Delivery::Refused(_) if range.len() > 1 => {
                    tracing::warn!(rows = range.len(), "a suspect chunk is halved");
                    suspects.extend(halves(&range).map(|half| (half, 0)));
                }
                Delivery::Died(_) if deaths + 1 < LONE_DEATHS_MAX => {
                    suspects.push((range, deaths + 1));
                }
                Delivery::Died(error) | Delivery::Refused(error) => {
                    pieces.fail(range.start, error);
                }
            }
        }
        Ok(pieces.whole())
    }

    /// Asks for the answers of all models.
    async fn ask(&self, texts: &[String]) -> Result<Delivery, SubmitError> {
        let request = RowsRequest {
            models: self.models.clone(),
            texts: texts.to_vec(),
        };
        let infer = || self.client.infer(&request);
        Ok(match self.until_taken(texts.len(), infer).await? {
            Ok(reply) => Delivery::Answered(self.outcomes(reply)),
            Err(Untaken::Died(error)) => Delivery::Died(error),
            Err(Untaken::Refused(error)) => Delivery::Refused(error),
            Err(Untaken::Late(late)) => Delivery::Answered(Answered {
                outcomes: texts.iter().map(|_| Err(late.clone())).collect(),
                ..Answered::default()
            }),
        })
    }

    /// Asks until the server takes the request; waits while it is full or starting.
    async fn until_taken<T, Asking: Future<Output = Result<T, ClientError>>>(
        &self,
        rows: usize,
        ask: impl Fn() -> Asking,
    ) -> Result<Result<T, Untaken>, SubmitError> {
        let mut warned = Instant::now();
        let error = |code, message: String| RowError::new(code, message);
        loop {
            let untaken = match ask().await {
                Ok(reply) => return Ok(Ok(reply)),
                Err(
                    full @ (ClientError::Busy { retry_after }
                    | ClientError::Unavailable { retry_after }),
                ) => {
                    tokio::time::sleep(retry_after).await;
                    if matches!(full, ClientError::Unavailable { .. }) {
                        self.ready().await?;
                    }
                    if warned.elapsed() >= FULL_WARNING_INTERVAL {
                        warned = Instant::now();
                        tracing::warn!(rows, "the inference-server is still full");
                    }
                    continue;
                }
                Err(ClientError::Away(_)) => {
                    self.ready().await?;
                    continue;
                }
                Err(ClientError::Gone(_)) => Untaken::Died(error(
                    RowErrorCode::ServerCrashed,
                    "the inference-server died on this row alone, more than once".to_owned(),
                )),
                Err(ClientError::Timeout) => Untaken::Died(error(
                    RowErrorCode::Timeout,
                    "the inference-server did not answer this row in time".to_owned(),
                )),
                Err(ClientError::TooLarge(words)) => Untaken::Refused(error(
                    RowErrorCode::TextTooLong,
                    format!("the inference-server does not take this row even alone: {words}"),
                )),
                Err(ClientError::Rejected { error, words: _ }) => Untaken::Refused(error),
                Err(ClientError::TooSlow) => Untaken::Late(error(
                    RowErrorCode::Timeout,
                    "the row did not reach the inference-server in time".to_owned(),
                )),
                Err(refused @ (ClientError::Refused { .. } | ClientError::Unsuited { .. })) => {
                    return Err(SubmitError::Refused(refused));
                }
            };
            return Ok(Err(untaken));
        }
    }

    async fn ready(&self) -> Result<(), SubmitError> {
        let ready = self.client.wait_ready(self.options.server_patience);
        ready.await.map_err(SubmitError::ServerAway)
    }

    fn outcomes(&self, reply: RowsReply) -> Answered {
        let outcomes = reply
            .rows
            .into_iter()
            .map(|row| self.outcome(row))
            .collect();
        Answered {
            outcomes,
            tokens: reply.tokens,
            cost: Cost::default(),
        }
    }

    /// A row succeeds when every step does; else the first failed step is the row's error. `replies`
    /// are those of the models; steps that share one share its reply.
    fn outcome(&self, mut replies: Vec<ModelReply>) -> RowOutcome {
        if self.models.len() < self.steps.len() {
            let of_step = self.steps.iter().map(|step| {
                let model = self.models.iter().position(|model| *model == step.model);
                replies[model.expect("the models are those of the steps")].clone()
            });
            replies = of_step.collect();
        }
        let steps = self.steps.iter().zip(replies);
        steps
            .map(|(step, reply)| match reply {
                ModelReply::Ok(prediction) => Ok(prediction),
                ModelReply::Err(error) => Err(RowError {
                    step: Some(step.name.clone()),
                    ..error
                }),
            })
            .collect()
    }
}

/// The rows in ranges of at most `rows_max`.
fn batches(rows: usize, rows_max: usize) -> Vec<Range<usize>> {
    let starts = (0..rows).step_by(rows_max.max(1));
    starts
        .map(|start| start..rows.min(start.saturating_add(rows_max)))
        .collect()
}

/// The second half first: what is pushed last is popped first.
fn halves(range: &Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle]
}

fn retryable(outcomes: &[RowOutcome]) -> Vec<usize> {
    let failed = outcomes.iter().enumerate();
    failed
        .filter(|(_, outcome)| matches!(outcome, Err(error) if error.code.is_retryable()))
        .map(|(index, _)| index)
        .collect()
}

/// Wait before try `attempt + 1`: doubles from `backoff_initial` up to `backoff_max`.
fn backoff(retry: &Retry, attempt: u32) -> Duration {
    retry
        .backoff_initial
        .saturating_mul(1 << (attempt - 1).min(30))
        .min(retry.backoff_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_between_tries_doubles_up_to_its_bound() {
        let retry = Retry {
            attempts_max: 100,
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(1),
        };
        let waits = [1, 2, 3, 4, 99].map(|attempt| backoff(&retry, attempt).as_millis());
        assert_eq!(waits, [200, 400, 800, 1000, 1000]);
    }
}
