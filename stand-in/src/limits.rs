//! Requests and tokens of a minute, by the moment at which they are let in: in any sixty seconds, or out of
//! buckets that sixty seconds refill. Pure, with the clock handed in.

use std::collections::VecDeque;

use clap::ValueEnum;

/// Length of the window.
pub const WINDOW_MS: u64 = 60_000;

/// How requests and tokens of a minute are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Algorithm {
    /// Any sixty seconds hold no more than a minute may.
    #[default]
    SlidingWindow,
    /// They are taken out of buckets, which are refilled evenly.
    TokenBucket,
}

/// What a minute holds; `None` is as much as anybody asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// How it is counted.
    pub algorithm: Algorithm,
    /// Most requests of a minute.
    pub requests: Option<u32>,
    /// Most requests that a full bucket lets in at once; otherwise those of a minute.
    pub requests_burst: Option<u32>,
    /// Most tokens of a minute.
    pub tokens: Option<u64>,
    /// Most tokens that a full bucket lets in at once; otherwise those of a minute.
    pub tokens_burst: Option<u64>,
}

/// The rate limiter of a key: what it let in lately, however that is counted.
#[derive(Debug, Default)]
pub struct RateLimiter {
    window: Window,
    requests: Bucket,
    tokens: Bucket,
}

impl RateLimiter {
    /// Lets a call in or not; one that is not changes nothing.
    pub fn ask(&mut self, now_ms: u64, tokens: u64, limits: &Limits) -> Standing {
        match limits.algorithm {
            Algorithm::SlidingWindow => {
                (self.window).ask(now_ms, tokens, limits.requests, limits.tokens)
            }
            Algorithm::TokenBucket => {
                let size = |most: Option<u64>, burst: Option<u64>| {
                    let most = most.unwrap_or(u64::MAX);
                    (most, burst.unwrap_or(most))
                };
                let requests = limits.requests.map(u64::from);
                let requests = size(requests, limits.requests_burst.map(u64::from));
                let of_tokens = size(limits.tokens, limits.tokens_burst);
                self.requests.refill(now_ms, requests);
                self.tokens.refill(now_ms, of_tokens);
                let is_let_in = self.requests.left(requests) >= 1.0
                    && self.tokens.left(of_tokens) >= tokens as f64;
                if is_let_in {
                    self.requests.taken += 1.0;
                    self.tokens.taken += tokens as f64;
                }
                let wanted = if is_let_in { 1 } else { tokens };
                Standing {
                    is_let_in,
                    requests_left: self.requests.left(requests) as u64,
                    tokens_left: self.tokens.left(of_tokens) as u64,
                    requests_reset_ms: self.requests.until_left_ms(requests, 1),
                    tokens_reset_ms: self.tokens.until_left_ms(of_tokens, wanted),
                }
            }
        }
    }
}

/// A bucket that is refilled evenly, beside what a minute refills and what it holds.
#[derive(Debug, Default)]
struct Bucket {
    taken: f64,
    at_ms: u64,
}

impl Bucket {
    fn refill(&mut self, now_ms: u64, (most, _): (u64, u64)) {
        let passed = (now_ms - self.at_ms) as f64 / WINDOW_MS as f64;
        self.taken = (self.taken - passed * most as f64).max(0.0);
        self.at_ms = now_ms;
    }

    fn left(&self, (_, burst): (u64, u64)) -> f64 {
        burst as f64 - self.taken
    }

    /// Milliseconds until so much is left.
    fn until_left_ms(&self, size: (u64, u64), wanted: u64) -> u64 {
        let lacking = (wanted as f64 - self.left(size)).max(0.0);
        (lacking / size.0 as f64 * WINDOW_MS as f64).ceil() as u64
    }
}

/// What was let in in the last sixty seconds.
#[derive(Debug, Default)]
struct Window {
    /// Moment and tokens, oldest first.
    calls: VecDeque<(u64, u64)>,
    tokens: u64,
}

/// What may be let in, as headers say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether the call is let in.
    pub is_let_in: bool,
    /// Requests that would still be let in now.
    pub requests_left: u64,
    /// Tokens that would still be let in now.
    pub tokens_left: u64,
    /// Milliseconds until another request is let in; 0 if one is now.
    pub requests_reset_ms: u64,
    /// Milliseconds until tokens are let in again; 0 if some are now.
    pub tokens_reset_ms: u64,
}

impl Window {
    fn ask(
        &mut self,
        now_ms: u64,
        tokens: u64,
        requests_max: Option<u32>,
        tokens_max: Option<u64>,
    ) -> Standing {
        while let Some(&(at, tokens)) = self.calls.front()
            && at + WINDOW_MS <= now_ms
        {
            self.calls.pop_front();
            self.tokens -= tokens;
        }
        let requests_max = requests_max.map_or(u64::MAX, u64::from);
        let tokens_max = tokens_max.unwrap_or(u64::MAX);
        let is_let_in = (self.calls.len() as u64) < requests_max
            && self.tokens.saturating_add(tokens) <= tokens_max;
        if is_let_in {
            self.calls.push_back((now_ms, tokens));
            self.tokens += tokens;
        }
        let wanted = if is_let_in { 1 } else { tokens };
        let requests_left = requests_max - self.calls.len() as u64;
        let tokens_left = tokens_max - self.tokens;
        let first_leaves = self
            .calls
            .front()
            .map_or(0, |(at, _)| at + WINDOW_MS - now_ms);
        Standing {
            is_let_in,
            requests_left,
            tokens_left,
            requests_reset_ms: if requests_left == 0 { first_leaves } else { 0 },
            tokens_reset_ms: match tokens_left >= wanted {
                true => 0,
                false => self.until_free(now_ms, wanted - tokens_left),
            },
        }
    }

    /// Milliseconds until so many tokens have left the window.
    fn until_free(&self, now_ms: u64, tokens: u64) -> u64 {
        let mut freed = 0;
        for (at, of_call) in &self.calls {
            freed += of_call;
            if freed >= tokens {
                return at + WINDOW_MS - now_ms;
            }
        }
        WINDOW_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_let_in_again_when_the_first_has_left_the_window() {
        let mut window = Window::default();
        let mut ask = |now_ms| window.ask(now_ms, 1, Some(2), None);
        assert!(ask(0).is_let_in);
        let second = ask(1_000);
        assert!(second.is_let_in);
        assert_eq!(
            (second.requests_left, second.requests_reset_ms),
            (0, 59_000)
        );
        assert!(!ask(59_999).is_let_in);
        assert!(ask(60_000).is_let_in);
    }

    #[test]
    fn a_bucket_lets_a_burst_in_and_then_what_is_refilled() {
        let mut limiter = RateLimiter::default();
        let limits = Limits {
            algorithm: Algorithm::TokenBucket,
            requests: Some(60),
            requests_burst: Some(2),
            tokens: Some(600),
            tokens_burst: None,
        };
        let mut ask = |now_ms, tokens| limiter.ask(now_ms, tokens, &limits);
        assert!(ask(0, 100).is_let_in);
        let second = ask(0, 300);
        assert!(second.is_let_in);
        assert_eq!((second.requests_left, second.requests_reset_ms), (0, 1_000));
        assert!(!ask(999, 10).is_let_in);
        let third = ask(1_000, 250);
        assert_eq!((third.is_let_in, third.tokens_reset_ms), (false, 4_000));
        assert!(ask(1_000, 200).is_let_in);
    }

    #[test]
    fn tokens_are_let_in_when_enough_have_left() {
        let mut window = Window::default();
        let mut ask = |now_ms, tokens| window.ask(now_ms, tokens, None, Some(100));
        assert!(ask(0, 30).is_let_in);
        assert!(ask(10_000, 60).is_let_in);
        let third = ask(20_000, 50);
        assert!(!third.is_let_in);
        assert_eq!((third.tokens_left, third.tokens_reset_ms), (10, 50_000));
        assert!(ask(60_000, 40).is_let_in);
    }
}
