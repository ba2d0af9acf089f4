//! The limiter's rules. Pure, with the clock handed in; the Lua scripts keep the same rules.

use std::collections::{HashMap, VecDeque};

use super::{Ask, Limits, Minute, Settlement, Verdict};

/// What was let in lately.
#[derive(Debug, Default)]
pub struct State {
    /// Calls that count in the present minute, oldest first.
    calls: VecDeque<Counted>,
    /// Their tokens.
    tokens: u64,
    /// Calls that are being made: when each was let in, and when it has ended at the latest.
    in_flight: HashMap<String, InFlight>,
    throttle: Option<Throttle>,
    paused_until_ms: u64,
    /// Requests by piece of the day.
    day: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Counted {
    id: String,
    at_ms: u64,
    tokens: u64,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    at_ms: u64,
    ends_ms: u64,
}

/// How many calls the API bears at a time, after it said that it was too much.
#[derive(Debug, Clone, Copy)]
struct Throttle {
    calls_max: f64,
    /// Below this number it grows by one with each call, above by one with each round of calls.
    steady: f64,
    cut_at_ms: u64,
}

impl State {
    /// Lets the call `id` in, or says for how many milliseconds it has to wait; `None` means until a
    /// call has ended.
    pub fn ask(
        &mut self,
        id: &str,
        ask: &Ask,
        minute: Minute,
        now_ms: u64,
    ) -> Result<(), Option<u64>> {
        let Ask {
            limits,
            tokens,
            workers_max: _,
            call_timeout,
        } = ask;
        self.forget(minute, now_ms);
        if self.paused_until_ms > now_ms {
            return Err(Some(self.paused_until_ms - now_ms));
        }
        if self.in_flight.len() as u64 >= self.calls_max(limits.concurrency) {
            return Err(None);
        }
        if let Some(wait_ms) = self.wait_ms(limits, *tokens, minute, now_ms) {
            return Err(Some(wait_ms));
        }
        self.calls.push_back(Counted {
            id: id.to_owned(),
            at_ms: now_ms,
            tokens: *tokens,
        });
        self.tokens += tokens;
        let ends_ms = now_ms + call_timeout.as_millis() as u64;
        let at_ms = now_ms;
        self.in_flight
            .insert(id.to_owned(), InFlight { at_ms, ends_ms });
        let piece = now_ms / minute.day_piece_ms();
        match self.day.back_mut() {
            Some((last, requests)) if *last == piece => *requests += 1,
            _ => self.day.push_back((piece, 1)),
        }
        Ok(())
    }

    /// Ends a call; one that has ended already changes nothing.
    pub fn settle(&mut self, id: &str, settlement: &Settlement, now_ms: u64) {
        let Settlement {
            tokens,
            verdict,
            pause,
            concurrency,
        } = settlement;
        let Some(InFlight { at_ms, ends_ms: _ }) = self.in_flight.remove(id) else {
            return;
        };
        if let (Some(tokens), Some(call)) = (
            tokens,
            self.calls.iter_mut().rev().find(|call| call.id == id),
        ) {
            self.tokens = self.tokens + tokens - call.tokens;
            call.tokens = *tokens;
        }
        if let Some(pause) = pause {
            let until_ms = now_ms + pause.as_millis() as u64;
            self.paused_until_ms = self.paused_until_ms.max(until_ms);
        }
        let most = *concurrency as f64;
        match verdict {
            Verdict::Nothing => {}
            Verdict::Fine => {
                if let Some(throttle) = &mut self.throttle {
                    let is_below = throttle.calls_max < throttle.steady;
                    throttle.calls_max += if is_below {
                        1.0
                    } else {
                        1.0 / throttle.calls_max
                    };
                    if throttle.calls_max >= most {
                        self.throttle = None;
                    }
                }
            }
            Verdict::TooMuch => {
                let now = self.throttle.map_or(most, |it| it.calls_max).min(most);
                // Calls that were on their way at a cut say nothing that it did not.
                if self.throttle.is_none_or(|it| at_ms > it.cut_at_ms) {
                    let half = (now / 2.0).max(1.0);
                    self.throttle = Some(Throttle {
                        calls_max: half,
                        steady: half,
                        cut_at_ms: now_ms,
                    });
                }
            }
        }
    }

    /// Most calls at one time now.
    pub fn calls_max(&self, concurrency: u64) -> u64 {
        let throttled = self.throttle.map_or(u64::MAX, |it| it.calls_max as u64);
        throttled.clamp(1, concurrency.max(1))
    }

    fn forget(&mut self, minute: Minute, now_ms: u64) {
        while let Some(call) = self.calls.front()
            && call.at_ms + minute.window_ms() <= now_ms
        {
            self.tokens -= call.tokens;
            self.calls.pop_front();
        }
        self.in_flight.retain(|_, call| call.ends_ms > now_ms);
        let piece = now_ms / minute.day_piece_ms();
        while let Some((first, _)) = self.day.front()
            && first + Minute::DAY_PIECES < piece
        {
            self.day.pop_front();
        }
    }

    /// Milliseconds until the windows have room for the call, if they have none now.
    fn wait_ms(&self, limits: &Limits, tokens: u64, minute: Minute, now_ms: u64) -> Option<u64> {
        let Limits {
            requests_per_minute,
            tokens_per_minute,
            requests_per_day,
            concurrency: _,
        } = limits;
        let leaves_ms = |call: &Counted| call.at_ms + minute.window_ms() - now_ms;
        let mut wait_ms = None;
        if let Some(max) = *requests_per_minute
            && self.calls.len() as u64 >= max
        {
            let first = &self.calls[self.calls.len() - max as usize];
            wait_ms = wait_ms.max(Some(leaves_ms(first)));
        }
        // A call of more tokens than a minute allows is let in when there is no other.
        if let Some(max) = *tokens_per_minute
            && self.tokens + tokens > max
            && !self.calls.is_empty()
        {
            let needed = self.tokens + tokens - max;
            let mut freed = 0;
            let enough = self.calls.iter().find(|call| {
                freed += call.tokens;
                freed >= needed
            });
            let last = enough.or(self.calls.back()).expect("there are calls");
            wait_ms = wait_ms.max(Some(leaves_ms(last)));
        }
        let today: u64 = self.day.iter().map(|(_, requests)| requests).sum();
        if let Some(max) = *requests_per_day
            && today >= max
        {
            let piece_ms = minute.day_piece_ms();
            let (first, _) = self.day.front().expect("today has requests");
            let gone_ms = (first + Minute::DAY_PIECES + 1) * piece_ms;
            wait_ms = wait_ms.max(Some(gone_ms - now_ms));
        }
        wait_ms
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const NONE: Limits = Limits {
        requests_per_minute: None,
        tokens_per_minute: None,
        requests_per_day: None,
        concurrency: 1_000,
    };

    fn ask(limits: Limits, tokens: u64) -> Ask {
        Ask {
            limits,
            tokens,
            workers_max: 1,
            call_timeout: Duration::from_secs(600),
        }
    }

    fn settled(verdict: Verdict) -> Settlement {
        Settlement {
            tokens: None,
            verdict,
            pause: None,
            concurrency: 8,
        }
    }

    #[test]
    fn a_call_more_than_a_minute_takes_waits_until_the_first_has_left() {
        let mut state = State::default();
        let limits = Limits {
            requests_per_minute: Some(2),
            ..NONE
        };
        let mut at = |id, now_ms| state.ask(id, &ask(limits, 0), Minute::default(), now_ms);
        assert_eq!(at("a", 0), Ok(()));
        assert_eq!(at("b", 1_000), Ok(()));
        assert_eq!(at("c", 2_000), Err(Some(59_200)));
        assert_eq!(at("c", 61_200), Ok(()));
    }

    #[test]
    fn tokens_are_corrected_when_a_call_has_ended() {
        let mut state = State::default();
        let limits = Limits {
            tokens_per_minute: Some(100),
            ..NONE
        };
        let minute = Minute::default();
        assert_eq!(state.ask("a", &ask(limits, 80), minute, 0), Ok(()));
        assert!(state.ask("b", &ask(limits, 50), minute, 0).is_err());
        let fewer = Settlement {
            tokens: Some(50),
            ..settled(Verdict::Fine)
        };
        state.settle("a", &fewer, 10);
        state.settle("a", &fewer, 20);
        assert_eq!(state.ask("b", &ask(limits, 50), minute, 30), Ok(()));
        assert!(state.ask("c", &ask(limits, 1), minute, 30).is_err());
    }

    #[test]
    fn calls_go_down_to_one_after_the_other_and_up_again() {
        let mut state = State::default();
        let limits = Limits {
            concurrency: 8,
            ..NONE
        };
        let mut now_ms = 0;
        let mut call = |state: &mut State, verdict| {
            now_ms += 10;
            let id = now_ms.to_string();
            let asked = state.ask(&id, &ask(limits, 0), Minute::default(), now_ms);
            assert_eq!(asked, Ok(()));
            state.settle(&id, &settled(verdict), now_ms + 5);
            state.calls_max(8)
        };
        let down: Vec<u64> = (0..5).map(|_| call(&mut state, Verdict::TooMuch)).collect();
        assert_eq!(down, [4, 2, 1, 1, 1]);
        let up: Vec<u64> = (0..40).map(|_| call(&mut state, Verdict::Fine)).collect();
        assert_eq!((up[0], *up.last().unwrap()), (2, 8));
    }

    #[test]
    fn calls_that_were_on_their_way_at_a_cut_do_not_cut_again() {
        let mut state = State::default();
        let limits = Limits {
            concurrency: 8,
            ..NONE
        };
        for id in ["a", "b", "c"] {
            assert!(state.ask(id, &ask(limits, 0), Minute::default(), 0).is_ok());
        }
        for id in ["a", "b", "c"] {
            state.settle(id, &settled(Verdict::TooMuch), 5);
        }
        assert_eq!(state.calls_max(8), 4);
    }

    #[test]
    fn a_pause_holds_everyone_back() {
        let mut state = State::default();
        let minute = Minute::default();
        assert_eq!(state.ask("a", &ask(NONE, 0), minute, 0), Ok(()));
        let paused = Settlement {
            pause: Some(Duration::from_secs(7)),
            ..settled(Verdict::Nothing)
        };
        state.settle("a", &paused, 1_000);
        assert_eq!(
            state.ask("b", &ask(NONE, 0), minute, 3_000),
            Err(Some(5_000))
        );
        assert_eq!(state.ask("b", &ask(NONE, 0), minute, 8_000), Ok(()));
    }

    #[test]
    fn a_call_of_more_tokens_than_a_minute_allows_is_made_alone() {
        let mut state = State::default();
        let limits = Limits {
            tokens_per_minute: Some(100),
            ..NONE
        };
        assert_eq!(
            state.ask("a", &ask(limits, 500), Minute::default(), 0),
            Ok(())
        );
        assert!(
            state
                .ask("b", &ask(limits, 1), Minute::default(), 0)
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_minute_and_no_day_holds_more_than_it_may(
            requests_per_minute in 1_u64..20,
            tokens_per_minute in 50_u64..500,
            requests_per_day in 20_u64..200,
            calls in proptest::collection::vec((0_u64..30_000, 1_u64..50), 1..300),
        ) {
            let limits = Limits {
                requests_per_minute: Some(requests_per_minute),
                tokens_per_minute: Some(tokens_per_minute),
                requests_per_day: Some(requests_per_day),
                concurrency: 1_000,
            };
            let (mut state, mut now_ms) = (State::default(), 0);
            let mut made: Vec<(u64, u64)> = Vec::new();
            for (number, (pause_ms, tokens)) in calls.into_iter().enumerate() {
                now_ms += pause_ms;
                let id = number.to_string();
                loop {
                    match state.ask(&id, &ask(limits, tokens), Minute::default(), now_ms) {
                        Ok(()) => break,
                        Err(wait_ms) => now_ms += wait_ms.unwrap_or(1),
                    }
                }
                made.push((now_ms, tokens));
                let within = |window_ms: u64| {
                    let late = made.iter().filter(move |(at, _)| at + window_ms > now_ms);
                    late.fold((0, 0), |(n, sum), (_, tokens)| (n + 1, sum + tokens))
                };
                let (requests, tokens) = within(60_000);
                prop_assert!(requests <= requests_per_minute);
                prop_assert!(tokens <= tokens_per_minute);
                prop_assert!(within(86_400_000).0 <= requests_per_day);
            }
        }
    }
}
