//! How many rows travel in one call. Pure.
//!
//! A fixed number, unless the service lets it move: then a little more with each call that went well
//! while more rows wait, as long as larger calls help. They help where requests are what is short, or a
//! call takes little of the time that it has; they do not where tokens are what is short, and never so
//! far that a call is expected to take more than half of that time. A call that is late or cannot be
//! split halves it.

use std::time::Duration;

/// How much a call that went well adds to the rows of the next.
const GROWTH: f64 = 0.5;

/// Which part of its time a call may be expected to take.
const TIME_PART_MAX: f64 = 0.5;

/// A call that takes less than this part of its time may as well be larger.
const TIME_PART_LITTLE: f64 = 0.25;

/// Calls wait for their turn where the wait is longer than this part of the call.
const WAIT_PART: f64 = 0.1;

/// How much of what was seen is still remembered after one more call.
const MEMORY: f64 = 0.9;

/// By how much rows must differ, squared and for each row, before times are told by them.
const SPREAD_LEAST: f64 = 1e-4;

/// What decides how far rows may grow.
#[derive(Debug, Clone, PartialEq)]
pub struct PaceOptions {
    /// Rows of the first call.
    pub rows: u32,
    /// Most rows of a call; without it their number is fixed.
    pub rows_max: Option<u32>,
    /// Longest that a call may take.
    pub call_time_max: Duration,
    /// Most tokens of a call with which the calls that a minute may hold stay within its tokens.
    pub call_tokens_max: Option<f64>,
}

/// What was seen of one call.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Its rows.
    pub rows: usize,
    /// Its tokens.
    pub tokens: u64,
    /// How long it waited for its turn.
    pub waited: Duration,
    /// How long it took after that.
    pub took: Duration,
}

/// The rows of the next call.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    options: PaceOptions,
    rows: f64,
    times: Times,
    tokens_per_row: f64,
    /// Whether the last call waited for its turn.
    is_waiting: bool,
}

impl Pace {
    /// Begins with as many rows as the options say.
    pub fn new(options: PaceOptions) -> Self {
        Self {
            rows: f64::from(options.rows),
            options,
            times: Times::default(),
            tokens_per_row: 0.0,
            is_waiting: false,
        }
    }

    /// Rows of the next call, at least 1.
    pub fn rows(&self) -> usize {
        (self.rows as usize).max(1)
    }

    /// A call was answered, whatever the answer is worth.
    pub fn see(&mut self, seen: Seen) {
        let Seen {
            rows,
            tokens,
            waited,
            took,
        } = seen;
        self.times.see(rows as f64, took.as_secs_f64());
        self.tokens_per_row = tokens as f64 / rows.max(1) as f64;
        self.is_waiting = waited.as_secs_f64() > took.as_secs_f64() * WAIT_PART;
    }

    /// A call with so many rows went well. One with far fewer than the next will have says nothing.
    pub fn went_well(&mut self, rows: usize) {
        let Some(rows_max) = self.options.rows_max else {
            return;
        };
        // Rows that begin with a number begin there again; only a call that was too large has fewer.
        let most = self.most().max(f64::from(self.options.rows));
        let most = most.min(f64::from(rows_max));
        let time_max = self.options.call_time_max.as_secs_f64();
        let takes_little = self.times.of(self.rows) <= time_max * TIME_PART_LITTLE;
        if self.rows > most {
            self.rows = most;
        } else if rows as f64 * 2.0 >= self.rows && (self.is_waiting || takes_little) {
            self.rows = (self.rows + GROWTH).min(most);
        }
    }

    /// A call with so many rows was too large.
    pub fn was_too_large(&mut self, rows: usize) {
        if self.options.rows_max.is_some() && rows > 1 {
            self.rows = (rows as f64 / 2.0).min(self.rows).max(1.0);
        }
    }

    /// Most rows with which a call is within its time, and calls within their tokens.
    fn most(&self) -> f64 {
        let time_max = self.options.call_time_max.as_secs_f64();
        let by_time = self.times.rows_within(time_max * TIME_PART_MAX);
        let by_tokens = match self.options.call_tokens_max {
            Some(tokens) if self.tokens_per_row > 0.0 => tokens / self.tokens_per_row,
            Some(_) | None => f64::INFINITY,
        };
        by_time.min(by_tokens)
    }
}

/// How long calls take by their rows: a line through what was seen, of which the newest counts most.
#[derive(Debug, Clone, Default, PartialEq)]
struct Times {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_by_seconds: f64,
}

impl Times {
    fn see(&mut self, rows: f64, seconds: f64) {
        for (sum, one) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.rows_squared, rows * rows),
            (&mut self.rows_by_seconds, rows * seconds),
        ] {
            *sum = *sum * MEMORY + one;
        }
    }

    /// Seconds of a call without rows, and of each row. Where what was seen does not tell the two apart,
    /// all of it is taken for the rows'.
    fn line(&self) -> (f64, f64) {
        if self.weight == 0.0 {
            return (0.0, 0.0);
        }
        let (rows, seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let spread = self.rows_squared / self.weight - rows * rows;
        let slope = (self.rows_by_seconds / self.weight - rows * seconds) / spread;
        let per_row = match spread > rows * rows * SPREAD_LEAST && slope > 0.0 {
            true => slope.min(seconds / rows),
            false => seconds / rows,
        };
        (seconds - per_row * rows, per_row)
    }

    /// Seconds that a call with so many rows is expected to take.
    fn of(&self, rows: f64) -> f64 {
        let (base, per_row) = self.line();
        base + per_row * rows
    }

    /// Most rows with which a call is expected to take no longer.
    fn rows_within(&self, seconds: f64) -> f64 {
        let (base, per_row) = self.line();
        match per_row > 0.0 {
            true => ((seconds - base) / per_row).max(1.0),
            false => f64::INFINITY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rows_max: Option<u32>, call_tokens_max: Option<f64>) -> Pace {
        Pace::new(PaceOptions {
            rows: 5,
            rows_max,
            call_time_max: Duration::from_secs(100),
            call_tokens_max,
        })
    }

    /// Calls that take `base` and so many seconds for each row, and ten tokens.
    fn calls(pace: &mut Pace, base: f64, per_row: f64, waited: f64) {
        for _ in 0..200 {
            let rows = pace.rows();
            pace.see(Seen {
                rows,
                tokens: 10 * rows as u64,
                waited: Duration::from_secs_f64(waited),
                took: Duration::from_secs_f64(base + per_row * rows as f64),
            });
            pace.went_well(rows);
        }
    }

    #[test]
    fn a_fixed_number_stays() {
        let mut pace = pace(None, None);
        calls(&mut pace, 1.0, 0.0, 60.0);
        pace.was_too_large(5);
        assert_eq!(pace.rows(), 5);
    }

    #[test]
    fn rows_grow_while_calls_go_well_and_halve_when_one_was_too_large() {
        let mut pace = pace(Some(20), None);
        calls(&mut pace, 1.0, 0.1, 60.0);
        assert_eq!(pace.rows(), 20);
        pace.was_too_large(20);
        assert_eq!(pace.rows(), 10);
    }

    #[test]
    fn rows_grow_no_further_than_half_of_the_time_of_a_call() {
        let mut waits = pace(Some(1_000), None);
        calls(&mut waits, 10.0, 1.0, 60.0);
        assert!((38..=40).contains(&waits.rows()), "{}", waits.rows());
        // A model that got slow takes rows away before any call is late.
        calls(&mut waits, 10.0, 4.0, 60.0);
        assert!((9..=10).contains(&waits.rows()), "{}", waits.rows());
    }

    #[test]
    fn where_no_call_waits_rows_grow_while_calls_take_little_of_their_time() {
        let mut pace = pace(Some(1_000), None);
        calls(&mut pace, 5.0, 1.0, 0.0);
        assert!((19..=21).contains(&pace.rows()), "{}", pace.rows());
    }

    #[test]
    fn where_tokens_are_short_larger_calls_do_not_help() {
        let mut pace = pace(Some(1_000), Some(120.0));
        calls(&mut pace, 1.0, 0.1, 60.0);
        assert_eq!(pace.rows(), 12);
    }

    #[test]
    fn a_time_that_no_row_adds_to_limits_no_rows() {
        let mut pace = pace(Some(200), None);
        calls(&mut pace, 20.0, 0.0, 60.0);
        assert_eq!(pace.rows(), 105, "grown by every call");
    }
}
