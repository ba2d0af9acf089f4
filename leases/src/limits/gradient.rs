//! How many calls an API works on at one time before more of them only wait there, judged by how long
//! calls take: the gradient of a gradient limiter. Pure.
//!
//! As many calls are made as the service allows, from the first one on. Every now and then fewer are made
//! for a round. Where calls get nearly as much faster as there are fewer, those that were left out had only
//! waited, and they stay out; where they do not, as with an API that is slow whoever asks, all are made
//! again. What was left out is tried again later in the same way. One call proves nothing: means of whole
//! rounds are compared, and differ only if they differ by more than chance.

/// By which part calls at one time go down for a trial, or up.
const STEP: f64 = 0.8;

/// Calls of a round, unless more are made at one time.
const ROUND_CALLS_MIN: u64 = 40;

/// Rounds before the first trial, so that a short job is never slowed by one, and most before any other.
const ROUNDS_FIRST: u64 = 10;
const ROUNDS_MAX: u64 = 80;

/// Calls wait where they are slower by this part, in logarithms, of what there are more of them.
const WAITING: f64 = 0.75;

/// There are more of them from this factor on.
const MORE: f64 = 1.1;

/// How many standard errors are more than chance.
const ERRORS: f64 = 3.0;

/// What was learned of an API.
#[derive(Debug, Clone, Default)]
pub struct Gradient {
    /// Calls at one time, if fewer than the service allows.
    calls_max: Option<u64>,
    trial: Option<Trial>,
    /// The last round without a trial, and the present one.
    usual: Round,
    round: Round,
    /// Rounds since the last trial, and how many there are to be before the next.
    rounds: u64,
    patience: u64,
    /// Whether the last trial was one of fewer calls.
    was_fewer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    Fewer,
    More,
}

/// Calls that were let in and have ended since a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    since_ms: u64,
    calls: u64,
    /// Sum of the calls that were being made at the end of each.
    in_flight: u64,
    /// Sum of the logarithms of how long each took, and of their squares.
    log: f64,
    log_squared: f64,
}

/// A call that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// When it was let in.
    pub at_ms: u64,
    /// When it ended.
    pub now_ms: u64,
    /// Calls that were being made until then, itself included.
    pub in_flight: u64,
    /// Most that the service allows.
    pub concurrency: u64,
}

impl Gradient {
    /// Most calls at one time.
    pub fn calls_max(&self, concurrency: u64) -> u64 {
        let usual = self.usual_max(concurrency);
        match self.trial {
            None => usual,
            Some(Trial::Fewer) => fewer(usual),
            Some(Trial::More) => more(usual, concurrency),
        }
    }

    fn usual_max(&self, concurrency: u64) -> u64 {
        self.calls_max.unwrap_or(concurrency).min(concurrency)
    }

    /// Learns from a call.
    pub fn see(&mut self, seen: Seen) {
        let Seen {
            at_ms,
            now_ms,
            in_flight,
            concurrency,
        } = seen;
        // Those that were on their way when a round began are of another one.
        if at_ms < self.round.since_ms {
            return;
        }
        let log = (now_ms.saturating_sub(at_ms).max(1) as f64).ln();
        let round = &mut self.round;
        round.calls += 1;
        round.in_flight += in_flight;
        round.log += log;
        round.log_squared += log * log;
        if round.calls < ROUND_CALLS_MIN.max(self.calls_max(concurrency)) {
            return;
        }
        let begun = Round {
            since_ms: now_ms,
            ..Round::default()
        };
        let round = std::mem::replace(&mut self.round, begun);
        self.end(round, concurrency);
    }

    fn end(&mut self, round: Round, concurrency: u64) {
        let usual = self.usual_max(concurrency);
        match self.trial {
            None => {
                self.usual = round;
                self.rounds += 1;
                if self.rounds >= self.patience.max(ROUNDS_FIRST) {
                    self.rounds = 0;
                    self.begin(usual, concurrency);
                }
            }
            Some(Trial::Fewer) if round.is_less_waiting_than(&self.usual) => {
                self.step(fewer(usual), round);
                if fewer(fewer(usual)) == fewer(usual) {
                    self.trial = None;
                }
            }
            Some(Trial::More) if !self.usual.is_less_waiting_than(&round) => {
                let more = more(usual, concurrency);
                self.step(more, round);
                if more == concurrency {
                    (self.calls_max, self.trial) = (None, None);
                }
            }
            Some(_) => {
                self.trial = None;
                self.patience = (self.patience.max(ROUNDS_FIRST) * 2).min(ROUNDS_MAX);
            }
        }
    }

    /// Begins a trial: of more and fewer by turns, as far as there are any.
    fn begin(&mut self, usual: u64, concurrency: u64) {
        let is_fewer = usual >= concurrency || !self.was_fewer;
        self.was_fewer = is_fewer;
        self.trial = match is_fewer {
            true if fewer(usual) < usual => Some(Trial::Fewer),
            true => None,
            false => Some(Trial::More),
        };
    }

    /// A trial was worth it: the next one goes on from there.
    fn step(&mut self, calls_max: u64, round: Round) {
        self.calls_max = Some(calls_max);
        self.usual = round;
        self.patience = ROUNDS_FIRST;
    }
}

fn fewer(calls: u64) -> u64 {
    ((calls as f64 * STEP) as u64).max(1)
}

fn more(calls: u64, concurrency: u64) -> u64 {
    ((calls as f64 / STEP).ceil() as u64).min(concurrency)
}

impl Round {
    /// Whether calls were faster in this round for little more than their smaller number.
    fn is_less_waiting_than(&self, other: &Round) -> bool {
        let (log, error) = self.mean();
        let (other_log, other_error) = other.mean();
        let calls = |round: &Round| round.in_flight as f64 / round.calls as f64;
        let more = (calls(other) / calls(self)).ln();
        let slower = other_log - log;
        more >= MORE.ln()
            && slower > WAITING * more
            && slower > ERRORS * (error + other_error).sqrt()
    }

    /// Mean of the logarithms, and the square of its standard error.
    fn mean(&self) -> (f64, f64) {
        let calls = self.calls as f64;
        let mean = self.log / calls;
        let variance = (self.log_squared / calls - mean * mean).max(0.0);
        (mean, variance / calls)
    }
}

#[cfg(test)]
#[path = "gradient_tests.rs"]
mod tests;
