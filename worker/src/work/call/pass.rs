//! One step over some rows: calls are begun while there are rows and seats before the gate, and what comes of each
//! decides what is asked next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use millrace_leases::limits::Verdict;
use millrace_protocol::cost::Cost;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::tally::Tally;
use millrace_protocol::wire::Prediction;
use tokio::sync::SemaphorePermit;

use super::Caller;
use super::gate::{Bought, Entered, Heard};
use super::pace::Seen;
use super::recall::{Recall, Sought};
use super::receipts::ReceiptsOf;
use super::tries::{PutOff, Tries, backoff};
use crate::metrics::CallOutcome;
use crate::work::client::remote::{CallError, Hints, Made, Said, Taken, Usage};
use crate::work::submit::SubmitError;

/// Rows that travel together, and how often they were tried.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// Indices of their prompts.
    rows: Vec<usize>,
    attempt: u32,
}

/// How a call ended.
enum End {
    Said(Said),
    /// It may succeed another time, not before the API said.
    Failed(RowError, Option<Duration>),
    /// One of its rows is to blame.
    Rejected(RowError),
}

/// What a call took, as the API says, and as was guessed.
#[derive(Clone, Copy)]
struct Price {
    taken: Taken,
    guessed: Usage,
}

/// One step over some rows.
pub struct Pass<'a> {
    caller: &'a Caller,
    step: usize,
    prompts: &'a [String],
    receipts: ReceiptsOf<'a>,
}

/// What is to be asked.
struct Open {
    /// Rows that nobody has asked about yet.
    fresh: VecDeque<usize>,
    /// Pieces that are asked again now.
    again: VecDeque<Piece>,
    /// Pieces that are asked again after a while.
    later: Vec<(Duration, Piece)>,
}

impl Open {
    /// Ends the rows that are known, and asks about the others.
    fn begin(
        &mut self,
        sought: Vec<Sought>,
        end: &mut impl FnMut(usize, Result<Prediction, RowError>),
    ) {
        for sought in sought {
            match sought {
                Sought::Known(row, answer) => end(row, Ok(answer)),
                Sought::Open(row) => self.fresh.push_back(row),
            }
        }
    }
}

impl<'a> Pass<'a> {
    pub fn new(
        caller: &'a Caller,
        step: usize,
        prompts: &'a [String],
        receipts: ReceiptsOf<'a>,
    ) -> Self {
        Self {
            caller,
            step,
            prompts,
            receipts,
        }
    }

    /// Asks until every row has its end, of which `end` hears with the index of its prompt; `tell`
    /// hears of what calls took. Returns what all of them took, which counts no rows.
    pub async fn run(
        &self,
        mut end: impl FnMut(usize, Result<Prediction, RowError>),
        tell: impl Fn(Tally),
    ) -> Result<Tally, SubmitError> {
        let mut open = Open {
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            later: Vec::new(),
        };
        let mut paid = self.receipts.find(self.step, self.prompts).await;
        let mut unpaid = Vec::new();
        for row in 0..self.prompts.len() {
            match paid.remove(&row) {
                Some(said) => end(row, Ok(said)),
                None => unpaid.push(row),
            }
        }
        let fingerprint = self.caller.api.fingerprint(self.step);
        let mut recall = Recall::new(self.caller.cache.as_ref(), fingerprint, self.prompts);
        open.begin(recall.seek(unpaid).await, &mut end);
        let mut all = Tally::default();
        let mut calls = FuturesUnordered::new();
        let mut resting = FuturesUnordered::new();
        loop {
            for (wait, piece) in open.later.drain(..) {
                resting.push(async move {
                    tokio::time::sleep(wait).await;
                    piece
                });
            }
            let is_open = !open.fresh.is_empty() || !open.again.is_empty();
            tokio::select! {
                biased;
                Some(ended) = calls.next(), if !calls.is_empty() => {
                    let (piece, ended, taken): (Piece, End, Tally) = ended?;
                    all += taken;
                    tell(taken);
                    self.take(piece, ended, &mut open, &mut |row, ended| {
                        recall.ended(row, &ended);
                        end(row, ended);
                    });
                }
                Some(waited) = recall.waited(), if recall.is_waiting() => {
                    open.begin(recall.resume(waited).await, &mut end);
                }
                Some(piece) = resting.next(), if !resting.is_empty() => open.again.push_back(piece),
                seat = self.caller.gate.seat(), if is_open => {
                    let piece = open.again.pop_front().unwrap_or_else(|| self.next(&mut open.fresh));
                    calls.push(self.call(piece, seat));
                }
                else => return Ok(all),
            }
        }
    }

    /// The next rows that nobody has asked about.
    fn next(&self, fresh: &mut VecDeque<usize>) -> Piece {
        let rows = self.caller.pace().rows();
        let rows = fresh.drain(..rows.min(fresh.len())).collect();
        Piece { rows, attempt: 0 }
    }

    /// Makes a call, again and again while the API puts it off.
    async fn call(
        &self,
        piece: Piece,
        seat: SemaphorePermit<'a>,
    ) -> Result<(Piece, End, Tally), SubmitError> {
        let (caller, count) = (self.caller, piece.rows.len());
        let prompts: Vec<&str> = piece.rows.iter().map(|&row| &*self.prompts[row]).collect();
        let call = caller.api.call(self.step, &prompts);
        let writes = caller.remote.writes();
        let mut tries = Tries::new(caller);
        let mut seat = Some(seat);
        loop {
            let guessed = caller.guess().usage(call.bytes(), count, writes);
            let waiting = Instant::now();
            let entered = caller.enter(guessed).await?;
            let waited = waiting.elapsed();
            // Put off, it comes back to the gate without one.
            drop(seat.take());
            let asked = Instant::now();
            let in_flight = caller.metrics.begin(count, waited);
            let Made { said, taken, hints } = caller.api.make(&call).await;
            let took = in_flight.end(outcome(&said));
            let heard = heard(&hints, asked.elapsed());
            match end(said, hints.retry_after) {
                Ok(ended) => {
                    if let End::Said(_) = &ended {
                        let seen = Seen {
                            rows: count,
                            tokens: taken.usage().unwrap_or(guessed).total(),
                            waited,
                            took,
                        };
                        caller.learn(call.bytes(), taken.usage(), seen);
                    }
                    let taken = Price { taken, guessed };
                    let tally = self.settle(entered, &prompts, &ended, taken, heard).await;
                    return Ok((piece, ended, tally));
                }
                Err(put_off) => {
                    let heard = match put_off {
                        PutOff::TooMuch => Heard {
                            verdict: Verdict::TooMuch,
                            pause: heard.pause.max(hints.retry_after),
                            ..heard
                        },
                        PutOff::Away(_) | PutOff::Refused(_) => heard,
                    };
                    entered.leave(Bought::NOTHING, heard).await;
                    tries.wait(count, put_off).await?;
                }
            }
        }
    }

    /// Settles a call that the API worked on. What it took is kept before anything is made of what was
    /// said, and while the call counts as being made: a budget that is spent stops the shard at once.
    async fn settle(
        &self,
        entered: Entered,
        prompts: &[&str],
        ended: &End,
        price: Price,
        heard: Heard,
    ) -> Tally {
        let (tokens, cost) = (price.taken.usage().map(Usage::total), self.cost(price));
        let tally = Tally {
            tokens: tokens.unwrap_or(0),
            cost,
            ..Tally::default()
        };
        self.keep(prompts, ended, tally).await;
        let bought = Bought {
            tokens,
            cost: Some(cost),
        };
        let verdict = match ended {
            End::Said(_) => Verdict::Fine,
            End::Failed(..) | End::Rejected(_) => Verdict::Nothing,
        };
        entered.leave(bought, Heard { verdict, ..heard }).await;
        tally
    }

    /// What a call cost; where the API does not say what it took, as was guessed.
    fn cost(&self, Price { taken, guessed }: Price) -> Cost {
        let Some(purse) = &self.caller.options.purse else {
            return Cost::default();
        };
        match taken {
            Taken::Nothing => Cost::default(),
            Taken::Known(usage) => purse.price(usage),
            Taken::Unknown => purse.price(guessed),
        }
    }

    /// Keeps what a call cost and what was said. What cannot be kept may be paid for twice, and nothing
    /// else is wrong.
    async fn keep(&self, prompts: &[&str], ended: &End, taken: Tally) {
        let said = said(prompts, ended);
        if said.is_empty() && taken.cost.is_nothing() {
            return;
        }
        if let Err(error) = self.receipts.keep(self.step, said, taken).await {
            tracing::warn!(%error, "the receipt of a call could not be kept");
        }
    }

    /// Decides what becomes of the rows of a call.
    fn take(
        &self,
        piece: Piece,
        ended: End,
        open: &mut Open,
        end: &mut impl FnMut(usize, Result<Prediction, RowError>),
    ) {
        let count = piece.rows.len();
        match ended {
            End::Said(said) => {
                let mut is_whole = true;
                for (row, said) in piece.rows.into_iter().zip(said) {
                    let Some(prediction) = said else {
                        is_whole = false;
                        let alone = Piece {
                            rows: vec![row],
                            attempt: piece.attempt,
                        };
                        match count {
                            1 => self.again(alone, not_what_was_asked(), None, open, end),
                            // Told apart from its company, it has all its tries before it.
                            _ => open.again.push_back(alone),
                        }
                        continue;
                    };
                    match prediction.is_finite() {
                        true => end(row, Ok(prediction)),
                        false => end(row, Err(RowError::not_finite())),
                    }
                }
                match is_whole {
                    true => self.caller.pace().went_well(count),
                    false => self.caller.pace().was_too_large(count),
                }
            }
            End::Failed(error, not_before) => {
                if error.code == RowErrorCode::Timeout {
                    self.caller.pace().was_too_large(count);
                }
                self.again(piece, error, not_before, open, end);
            }
            End::Rejected(error) => match count {
                1 => end(piece.rows[0], Err(error)),
                _ => open.again.extend(halves(&piece)),
            },
        }
    }

    /// Asks rows of a failed call again after a while, at least as long as the API asks for: first as they were, then in halves, in the end
    /// one by one. A row that has no try left ends with the error.
    fn again(
        &self,
        piece: Piece,
        error: RowError,
        not_before: Option<Duration>,
        open: &mut Open,
        end: &mut impl FnMut(usize, Result<Prediction, RowError>),
    ) {
        let retry = &self.caller.options.retry;
        let piece = Piece {
            attempt: piece.attempt + 1,
            ..piece
        };
        let is_spent = piece.attempt >= retry.attempts_max;
        if is_spent && piece.rows.len() == 1 {
            end(piece.rows[0], Err(error));
            return;
        }
        let pieces = match piece.attempt {
            _ if is_spent => ones(&piece, retry.attempts_max.saturating_sub(1)),
            1 => vec![piece.clone()],
            _ => halves(&piece),
        };
        let mut waits = backoff(retry, piece.attempt as usize);
        let wait = waits.nth(piece.attempt as usize - 1);
        let wait = wait
            .unwrap_or(retry.backoff_max)
            .max(not_before.unwrap_or_default());
        open.later
            .extend(pieces.into_iter().map(|piece| (wait, piece)));
    }
}

/// How a call ended, if the API worked on it.
fn end(said: Result<Said, CallError>, not_before: Option<Duration>) -> Result<End, PutOff> {
    match said {
        Ok(said) => Ok(End::Said(said)),
        Err(CallError::Failed(error)) => Ok(End::Failed(error, not_before)),
        Err(CallError::Rejected(error)) => Ok(End::Rejected(error)),
        Err(CallError::TooMuch) => Err(PutOff::TooMuch),
        Err(CallError::Away(words)) => Err(PutOff::Away(words)),
        Err(CallError::Refused(words)) => Err(PutOff::Refused(words)),
    }
}

/// What was said to which prompt, as far as it is good for something.
fn said<'a>(prompts: &[&'a str], ended: &'a End) -> Vec<(&'a str, &'a Prediction)> {
    let End::Said(said) = ended else {
        return Vec::new();
    };
    let said = prompts.iter().zip(said);
    let said = said.filter_map(|(prompt, said)| Some((*prompt, said.as_ref()?)));
    said.filter(|(_, said)| said.is_finite()).collect()
}

/// The two halves of a piece, or the piece itself if it is one row.
fn halves(piece: &Piece) -> Vec<Piece> {
    let size = piece.rows.len().div_ceil(2).max(1);
    let half = |rows: &[usize]| Piece {
        rows: rows.to_vec(),
        attempt: piece.attempt,
    };
    piece.rows.chunks(size).map(half).collect()
}

fn ones(piece: &Piece, attempt: u32) -> Vec<Piece> {
    let one = |&row: &usize| Piece {
        rows: vec![row],
        attempt,
    };
    piece.rows.iter().map(one).collect()
}

/// What headers say of the API, `since` having passed since the call was made: a pause holds from when the
/// API let the call in.
fn heard(hints: &Hints, since: Duration) -> Heard {
    let exhausted = (hints.exhausted).and_then(|exhausted| exhausted.checked_sub(since));
    Heard {
        verdict: Verdict::Nothing,
        pause: exhausted.filter(|pause| !pause.is_zero()),
        allowed: hints.allowed,
    }
}

/// What became of a call, for those who count.
fn outcome(said: &Result<Said, CallError>) -> CallOutcome {
    match said {
        Ok(_) => CallOutcome::Answered,
        Err(CallError::TooMuch) => CallOutcome::PutOff,
        Err(CallError::Away(_)) => CallOutcome::Away,
        Err(CallError::Failed(_)) => CallOutcome::Failed,
        Err(CallError::Rejected(_)) => CallOutcome::Rejected,
        Err(CallError::Refused(_)) => CallOutcome::Refused,
    }
}

fn not_what_was_asked() -> RowError {
    RowError::new(
        RowErrorCode::AnswerInvalid,
        "the model's answer is not what was asked for",
    )
}
