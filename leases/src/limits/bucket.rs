//! A token bucket: what is let in is taken out of it, and it is refilled evenly. Pure; the Lua scripts
//! reckon in the same order, so that both come to the same numbers.

use super::{Minute, PerMinute};

/// By which part of what a minute refills a bucket is smaller than the API's, since the API counts from
/// when it hears of a call, which varies.
pub(super) const MARGIN: f64 = 0.02;

/// By which part of itself a small bucket is smaller.
pub(super) const MARGIN_MAX: f64 = 0.1;

/// How large a bucket is, and how fast it is refilled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// What a full bucket lets in at once.
    pub capacity: f64,
    /// What each millisecond refills.
    pub per_ms: f64,
}

impl Size {
    /// The bucket of a limit, which holds `burst` when it is full.
    pub fn new(limit: PerMinute, minute: Minute) -> Self {
        let PerMinute { most, burst } = limit;
        let most = most as f64;
        // Where the API itself allows less than the service says, its bucket is smaller too.
        let burst = (burst as f64).min(most);
        Self {
            capacity: burst - (most * MARGIN).min(burst * MARGIN_MAX),
            per_ms: most / minute.window_ms() as f64,
        }
    }
}

/// What was taken out of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bucket {
    /// What is missing until it is full.
    missing: f64,
    /// All that ever came back into it.
    came_back: f64,
    at_ms: u64,
}

impl Bucket {
    /// Lets time pass until `now_ms`.
    pub fn refill(&mut self, size: Size, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.at_ms) as f64;
        self.come_back((passed_ms * size.per_ms).min(self.missing));
        self.at_ms = now_ms;
    }

    /// Milliseconds until it has room for so much, if it has none now. What is more than all of it is let
    /// in when it is full.
    pub fn wait_ms(&self, size: Size, wanted: u64) -> Option<u64> {
        let lacking = (self.missing + wanted as f64 - size.capacity).min(self.missing);
        (lacking > 0.0).then(|| (lacking / size.per_ms).ceil() as u64)
    }

    /// Takes so much out.
    pub fn take(&mut self, amount: u64) -> Taken {
        self.missing += amount as f64;
        Taken {
            amount,
            back_at: self.came_back + self.missing,
        }
    }

    /// Corrects what was taken out. What was too much comes back, as far as time has not brought it
    /// back already: that was room which the API's own bucket had before, and may have lost by being full.
    pub fn correct(&mut self, taken: Taken, actual: u64) {
        let Taken { amount, back_at } = taken;
        let (guessed, actual) = (amount as f64, actual as f64);
        if actual >= guessed {
            self.missing += actual - guessed;
        } else {
            let not_yet = (back_at - self.came_back).max(0.0);
            self.come_back((guessed - actual).min(not_yet).min(self.missing));
        }
    }

    fn come_back(&mut self, amount: f64) {
        self.missing -= amount;
        self.came_back += amount;
    }
}

/// What a call took out of a bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    /// How much.
    pub amount: u64,
    /// How much will have come back by the time that all of this has.
    pub back_at: f64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(most: u64, burst: u64) -> Size {
        Size::new(PerMinute { most, burst }, Minute::default())
    }

    #[test]
    fn a_full_bucket_lets_a_burst_in_and_then_what_is_refilled() {
        let (size, mut bucket) = (size(100, 20), Bucket::default());
        for _ in 0..18 {
            assert_eq!(bucket.wait_ms(size, 1), None);
            bucket.take(1);
        }
        // 61.2 seconds refill a hundred.
        assert_eq!(bucket.wait_ms(size, 1), Some(612));
        bucket.refill(size, 611);
        assert!(bucket.wait_ms(size, 1).is_some());
        bucket.refill(size, 612);
        assert_eq!(bucket.wait_ms(size, 1), None);
    }

    #[test]
    fn more_than_a_bucket_holds_is_let_in_when_it_is_full() {
        let (size, mut bucket) = (size(100, 10), Bucket::default());
        assert_eq!(bucket.wait_ms(size, 500), None);
        bucket.take(500);
        assert_eq!(bucket.wait_ms(size, 500), Some(306_000));
        bucket.refill(size, 306_000);
        assert_eq!(bucket.wait_ms(size, 500), None);
    }

    #[test]
    fn what_was_guessed_too_much_comes_back_unless_it_came_back_by_itself() {
        let (size, mut bucket) = (size(100, 100), Bucket::default());
        let taken = bucket.take(50);
        bucket.correct(taken, 20);
        assert_eq!(bucket.missing, 20.0);
        bucket.refill(size, 61_200);
        let taken = bucket.take(50);
        bucket.refill(size, 2 * 61_200);
        bucket.take(30);
        bucket.correct(taken, 20);
        assert_eq!(bucket.missing, 30.0);
        bucket.correct(taken, 60);
        assert_eq!(
            bucket.missing, 40.0,
            "what was guessed too low counts whenever it is known"
        );
    }

    /// A call: milliseconds after the one before it, guessed tokens, how many percent of them it takes,
    /// and how many calls later that is known.
    fn call() -> impl Strategy<Value = (u64, u64, u64, usize)> {
        (0_u64..4_000, 1_u64..60, 0_u64..=100, 0_usize..12)
    }

    proptest! {
        #[test]
        fn a_bucket_of_what_calls_really_took_would_have_let_them_in_as_well(
            burst in 30_u64..=300,
            calls in proptest::collection::vec(call(), 1..300),
        ) {
            let size = size(300, burst);
            let (mut bucket, mut exact, mut now_ms) = (Bucket::default(), Bucket::default(), 0);
            let mut open: Vec<(usize, Taken, u64)> = Vec::new();
            for (number, (pause_ms, amount, percent, known_after)) in calls.into_iter().enumerate() {
                now_ms += pause_ms;
                for (_, taken, actual) in open.extract_if(.., |(at, ..)| *at <= number) {
                    bucket.correct(taken, actual);
                }
                bucket.refill(size, now_ms);
                if let Some(wait_ms) = bucket.wait_ms(size, amount) {
                    now_ms += wait_ms;
                    bucket.refill(size, now_ms);
                    prop_assert!(bucket.wait_ms(size, amount).unwrap_or(0) <= 1);
                }
                let actual = amount * percent / 100;
                exact.refill(size, now_ms);
                exact.take(actual);
                let room = size.capacity.max(actual as f64) + 1e-6;
                prop_assert!(exact.missing <= room, "{} of {room}", exact.missing);
                open.push((number + 1 + known_after, bucket.take(amount), actual));
            }
        }
    }
}
