//! How fast a job gets on, lately. Pure, with the clock handed in; kept in memory, since another
//! operator measures anew.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back is looked: shards are committed seconds apart.
const WINDOW: Duration = Duration::from_secs(60);

/// Shortest time that says anything.
const SPAN_MIN: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Rows of committed shards.
    pub rows: u64,
    /// Shards that are committed or given up.
    pub shards: u64,
}

/// A job's pace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Rows per second.
    pub rows: f64,
    /// Shards per second.
    pub shards: f64,
}

/// Counts of the last minute, oldest first.
#[derive(Debug, Default)]
pub struct Meter {
    seen: VecDeque<(Instant, Counted)>,
}

impl Meter {
    /// Takes counts and says the pace, once there is one. A count that fell was counted anew.
    pub fn observe(&mut self, counted: Counted, now: Instant) -> Option<Pace> {
        if self
            .seen
            .back()
            .is_some_and(|(_, before)| before.shards > counted.shards)
        {
            self.seen.clear();
        }
        self.seen.push_back((now, counted));
        // One sample older than the window stays, so that the window is whole.
        while self.seen.len() > 2 && now.duration_since(self.seen[1].0) >= WINDOW {
            self.seen.pop_front();
        }
        let (from, before) = *self.seen.front()?;
        let span = now.duration_since(from);
        if span < SPAN_MIN || counted.shards == before.shards {
            return None;
        }
        let per_second = |count: u64| count as f64 / span.as_secs_f64();
        Some(Pace {
            rows: per_second(counted.rows.saturating_sub(before.rows)),
            shards: per_second(counted.shards - before.shards),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let counted = |shards| Counted {
            rows: shards * 10,
            shards,
        };
        let mut meter = Meter::default();
        assert_eq!(meter.observe(counted(0), at(0)), None);
        assert_eq!(meter.observe(counted(1), at(1)), None, "too early to say");
        let pace = meter.observe(counted(10), at(10)).unwrap();
        assert_eq!((pace.rows, pace.shards), (10.0, 1.0));
        for second in 11..=100 {
            meter.observe(counted(10 + (second - 10) * 2), at(second));
        }
        let pace = meter.observe(counted(192), at(101)).unwrap();
        assert!((pace.shards - 2.0).abs() < 0.1, "{pace:?}");
        assert_eq!(meter.observe(counted(0), at(102)), None, "counted anew");
    }
}
