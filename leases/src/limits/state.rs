//! The limiter's rules. Pure, with the clock handed in; the Lua scripts keep the same rules.

use std::collections::{HashMap, VecDeque};

use millrace_protocol::cost::Cost;

use super::{Ask, Bill, Limits, Minute, Settlement, Verdict};

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
    /// What jobs have paid, calls that are being made included.
    accounts: HashMap<String, Cost>,
}

#[derive(Debug)]
struct Counted {
    id: String,
    at_ms: u64,
    tokens: u64,
}

#[derive(Debug)]
struct InFlight {
    at_ms: u64,
    ends_ms: u64,
    /// Who pays for it, and what was guessed.
    bill: Option<(String, Cost)>,
}

/// Why a call is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has to wait for so many milliseconds.
    For(u64),
    /// It has to wait until a call has ended.
    UntilACallEnds,
    /// Nobody knows what its job has paid.
    Unfilled,
    /// Its job has paid what it may.
    Spent,
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
    /// Lets the call `id` in, or says why not.
    pub fn ask(&mut self, id: &str, ask: &Ask, minute: Minute, now_ms: u64) -> Result<(), Refusal> {
        let Ask {
            limits,
            tokens,
            call_timeout,
            bill,
        } = ask;
        self.forget(minute, now_ms);
        if let Some(bill) = bill {
            self.can_pay(bill)?;
        }
        if self.paused_until_ms > now_ms {
            return Err(Refusal::For(self.paused_until_ms - now_ms));
        }
        if self.in_flight.len() as u64 >= self.calls_max(limits.concurrency) {
            return Err(Refusal::UntilACallEnds);
        }
        if let Some(wait_ms) = self.wait_ms(limits, *tokens, minute, now_ms) {
            return Err(Refusal::For(wait_ms));
        }
        self.calls.push_back(Counted {
            id: id.to_owned(),
            at_ms: now_ms,
            tokens: *tokens,
        });
        self.tokens += tokens;
        let ends_ms = now_ms + call_timeout.as_millis() as u64;
        let bill = bill.as_ref().map(|bill| (bill.job.clone(), bill.price));
        if let Some((job, price)) = &bill {
            *self.accounts.entry(job.clone()).or_default() += *price;
        }
        let call = InFlight {
            at_ms: now_ms,
            ends_ms,
            bill,
        };
        self.in_flight.insert(id.to_owned(), call);
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
            cost,
            verdict,
            pause,
            concurrency,
        } = settlement;
        let Some(InFlight {
            at_ms,
            ends_ms: _,
            bill,
        }) = self.in_flight.remove(id)
        else {
            return;
        };
        if let (Some(cost), Some((job, price))) = (cost, bill)
            && let Some(paid) = self.accounts.get_mut(&job)
        {
            *paid = paid.less(price) + *cost;
        }
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

    /// Whether the job can pay for the call. What does not fit beside calls that are being made may
    /// fit once it is known what they cost.
    fn can_pay(&mut self, bill: &Bill) -> Result<(), Refusal> {
        let Bill {
            job,
            price,
            max,
            paid,
        } = bill;
        let known = self.accounts.get(job).copied();
        let Some(paid) = known.max(*paid) else {
            return Err(Refusal::Unfilled);
        };
        self.accounts.insert(job.clone(), paid);
        let Some(max) = *max else {
            return Ok(());
        };
        if paid < max && paid + *price <= max {
            return Ok(());
        }
        let mut bills = self
            .in_flight
            .values()
            .filter_map(|call| call.bill.as_ref());
        let is_open = bills.any(|(payer, _)| payer == job);
        match (is_open, paid < max) {
            (true, _) => Err(Refusal::UntilACallEnds),
            (false, true) => Ok(()),
            (false, false) => Err(Refusal::Spent),
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
#[path = "state_tests.rs"]
mod tests;
