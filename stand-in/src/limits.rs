//! Requests and tokens in any sixty seconds, by the moment at which they are let in. Pure, with the
//! clock handed in.

use std::collections::VecDeque;

/// Length of the window.
pub const WINDOW_MS: u64 = 60_000;

/// What was let in lately.
#[derive(Debug, Default)]
pub struct Window {
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
    /// Lets a call in or not; one that is not changes nothing.
    pub fn ask(
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
