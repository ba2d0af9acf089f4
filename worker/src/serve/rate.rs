//! How fast this worker's server is: tokens per second, lately, while there was work. Pure, with the
//! clock handed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(30);

/// Shortest time that says anything: rows are counted as chunks are answered, some at a time.
const SPAN_MIN: Duration = Duration::from_secs(3);

/// Token counts of a stretch of work, oldest first.
#[derive(Debug, Default)]
pub struct Rate {
    seen: VecDeque<(Instant, u64)>,
    last: Option<f64>,
}

impl Rate {
    /// Takes the count of all tokens so far. A pause ends the stretch: what was measured stays.
    pub fn observe(&mut self, tokens: u64, is_busy: bool, now: Instant) {
        if !is_busy {
            self.seen.clear();
            return;
        }
        self.seen.push_back((now, tokens));
        while self
            .seen
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            self.seen.pop_front();
        }
        if let (Some((from, before)), Some((to, after))) = (self.seen.front(), self.seen.back()) {
            let span = to.duration_since(*from);
            if span >= SPAN_MIN && after > before {
                self.last = Some((after - before) as f64 / span.as_secs_f64());
            }
        }
    }

    /// The last measure.
    pub fn per_second(&self) -> Option<f64> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_stretch_of_work() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::default();
        rate.observe(0, true, at(0));
        rate.observe(100, true, at(1));
        assert_eq!(rate.per_second(), None, "too short to say");
        rate.observe(400, true, at(4));
        assert_eq!(rate.per_second(), Some(100.0));
        rate.observe(400, false, at(5));
        rate.observe(400, false, at(60));
        assert_eq!(rate.per_second(), Some(100.0), "idling does not slow it");
        rate.observe(400, true, at(100));
        rate.observe(1_400, true, at(105));
        assert_eq!(rate.per_second(), Some(200.0));
    }
}
