//! The limiter's rules. Pure, with the clock handed in; the Lua scripts keep the same rules.

use std::collections::{HashMap, VecDeque};

use millrace_protocol::cost::Cost;

use super::bucket::{Bucket, Size, Taken};
use super::day::Day;
use super::gradient::{Gradient, Seen};
use super::{Algorithm, Allowed, Ask, Bill, Limits, Minute, PerMinute, Settlement, Verdict};

/// What was let in lately.
#[derive(Debug, Default)]
pub struct State {
    /// Calls that count in the present minute, oldest first.
    calls: VecDeque<Counted>,
    /// Their tokens.
    tokens: u64,
    buckets: Buckets,
    /// What the API said last that it lets in.
    allowed: Allowed,
    /// Calls that are being made: when each was let in, and when it has ended at the latest.
    in_flight: HashMap<String, InFlight>,
    throttle: Option<Throttle>,
    gradient: Gradient,
    paused_until_ms: u64,
    day: Day,
    /// What jobs have paid, calls that are being made included.
    accounts: HashMap<String, Cost>,
}

/// What was taken out of the buckets, where the API has any, until a call was last let in.
#[derive(Debug, Clone, Copy, Default)]
struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Buckets {
    /// What they are at `now_ms`; where there is none now, one that there is later is full.
    fn refilled(self, limits: &Limits, minute: Minute, now_ms: u64) -> Self {
        let refilled = |bucket: Option<Bucket>, limit| match (limits.algorithm, limit) {
            (Algorithm::TokenBucket, Some(limit)) => {
                let mut bucket = bucket.unwrap_or_default();
                bucket.refill(Size::new(limit, minute), now_ms);
                Some(bucket)
            }
            _ => None,
        };
        Self {
            requests: refilled(self.requests, limits.requests_per_minute),
            tokens: refilled(self.tokens, limits.tokens_per_minute),
        }
    }

    /// Takes a call out, and returns what it took of the tokens.
    fn take(&mut self, tokens: u64) -> Taken {
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        let untaken = Taken {
            amount: tokens,
            back_at: 0.0,
        };
        let bucket = self.tokens.as_mut();
        bucket.map_or(untaken, |bucket| bucket.take(tokens))
    }
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
    /// Tokens that were guessed, and where they are counted.
    tokens: Taken,
    piece: u64,
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
        let limits = &limits.within(self.allowed);
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
        let buckets = self.buckets.refilled(limits, minute, now_ms);
        if let Some(wait_ms) = self.wait_ms(limits, buckets, *tokens, minute, now_ms) {
            return Err(Refusal::For(wait_ms));
        }
        self.buckets = buckets;
        self.calls.push_back(Counted {
            id: id.to_owned(),
            at_ms: now_ms,
            tokens: *tokens,
        });
        self.tokens += tokens;
        let bill = bill.as_ref().map(|bill| (bill.job.clone(), bill.price));
        if let Some((job, price)) = &bill {
            *self.accounts.entry(job.clone()).or_default() += *price;
        }
        let call = InFlight {
            at_ms: now_ms,
            ends_ms: now_ms + call_timeout.as_millis() as u64,
            tokens: self.buckets.take(*tokens),
            piece: self.day.count(*tokens, minute, now_ms),
            bill,
        };
        self.in_flight.insert(id.to_owned(), call);
        Ok(())
    }

    /// Ends a call; one that has ended already changes nothing.
    pub fn settle(&mut self, id: &str, settlement: &Settlement, now_ms: u64) {
        let Settlement {
            tokens,
            cost,
            verdict,
            pause,
            allowed,
            concurrency,
        } = settlement;
        let in_flight = self.in_flight.len() as u64;
        let Some(InFlight {
            at_ms,
            ends_ms: _,
            tokens: taken,
            piece,
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
        if let Some(tokens) = *tokens {
            let counted = self.calls.iter_mut().rev().find(|call| call.id == id);
            if let Some(call) = counted {
                self.tokens = self.tokens + tokens - call.tokens;
                call.tokens = tokens;
            }
            if let Some(bucket) = &mut self.buckets.tokens {
                bucket.correct(taken, tokens);
            }
            self.day.correct(piece, taken.amount, tokens);
        }
        if let Some(pause) = pause {
            let until_ms = now_ms + pause.as_millis() as u64;
            self.paused_until_ms = self.paused_until_ms.max(until_ms);
        }
        self.believe(*allowed, *verdict);
        match verdict {
            Verdict::Nothing => {}
            Verdict::Fine => {
                self.gradient.see(Seen {
                    at_ms,
                    now_ms,
                    in_flight,
                    concurrency: *concurrency,
                });
                self.grow(*concurrency);
            }
            Verdict::TooMuch => self.cut(at_ms, *concurrency, now_ms),
        }
    }

    /// Believes what the API said of itself with a call that ended so.
    fn believe(&mut self, allowed: Allowed, verdict: Verdict) {
        // An API that answers and says nothing of it is another one, or has it no more.
        let before = match verdict {
            Verdict::Fine => Allowed::default(),
            Verdict::Nothing | Verdict::TooMuch => self.allowed,
        };
        self.allowed = Allowed {
            requests: allowed.requests.or(before.requests),
            tokens: allowed.tokens.or(before.tokens),
        };
    }

    /// The API answered: where there were fewer calls at one time than may be, there may be more.
    fn grow(&mut self, concurrency: u64) {
        let Some(throttle) = &mut self.throttle else {
            return;
        };
        let is_below = throttle.calls_max < throttle.steady;
        throttle.calls_max += if is_below {
            1.0
        } else {
            1.0 / throttle.calls_max
        };
        if throttle.calls_max >= concurrency as f64 {
            self.throttle = None;
        }
    }

    /// The API said that it is too much: there are half as many calls at one time. Calls that were on
    /// their way at a cut say nothing that it did not.
    fn cut(&mut self, at_ms: u64, concurrency: u64, now_ms: u64) {
        let most = concurrency as f64;
        if self.throttle.is_none_or(|it| at_ms > it.cut_at_ms) {
            let now = self.throttle.map_or(most, |it| it.calls_max).min(most);
            let half = (now / 2.0).max(1.0);
            self.throttle = Some(Throttle {
                calls_max: half,
                steady: half,
                cut_at_ms: now_ms,
            });
        }
    }

    /// Most calls at one time now.
    pub fn calls_max(&self, concurrency: u64) -> u64 {
        let throttled = self.throttle.map_or(u64::MAX, |it| it.calls_max as u64);
        let calls_max = throttled.min(self.gradient.calls_max(concurrency));
        calls_max.clamp(1, concurrency.max(1))
    }

    fn forget(&mut self, minute: Minute, now_ms: u64) {
        while let Some(call) = self.calls.front()
            && call.at_ms + minute.window_ms() <= now_ms
        {
            self.tokens -= call.tokens;
            self.calls.pop_front();
        }
        self.in_flight.retain(|_, call| call.ends_ms > now_ms);
        self.day.forget(minute, now_ms);
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

    /// Milliseconds until there is room for the call, if there is none now.
    fn wait_ms(
        &self,
        limits: &Limits,
        buckets: Buckets,
        tokens: u64,
        minute: Minute,
        now_ms: u64,
    ) -> Option<u64> {
        let Limits {
            algorithm,
            requests_per_minute,
            tokens_per_minute,
            requests_per_day,
            tokens_per_day,
            concurrency: _,
        } = *limits;
        let of_minute = match algorithm {
            Algorithm::SlidingWindow => [
                requests_per_minute.and_then(|limit| self.requests_leave_ms(limit, minute, now_ms)),
                tokens_per_minute
                    .and_then(|limit| self.tokens_leave_ms(tokens, limit, minute, now_ms)),
            ],
            Algorithm::TokenBucket => [
                (requests_per_minute.zip(buckets.requests))
                    .and_then(|(limit, bucket)| bucket.wait_ms(Size::new(limit, minute), 1)),
                (tokens_per_minute.zip(buckets.tokens))
                    .and_then(|(limit, bucket)| bucket.wait_ms(Size::new(limit, minute), tokens)),
            ],
        };
        let of_day = [
            requests_per_day.and_then(|max| self.day.requests_wait_ms(max, minute, now_ms)),
            tokens_per_day.and_then(|max| self.day.tokens_wait_ms(tokens, max, minute, now_ms)),
        ];
        of_minute.into_iter().chain(of_day).flatten().max()
    }

    /// Milliseconds until the window has room for another request, if it has none now.
    fn requests_leave_ms(&self, limit: PerMinute, minute: Minute, now_ms: u64) -> Option<u64> {
        let beyond = self.calls.len().checked_sub(limit.most as usize)?;
        Some(self.calls[beyond].at_ms + minute.window_ms() - now_ms)
    }

    /// The same of tokens. A call of more than a minute allows is let in when there is no other.
    fn tokens_leave_ms(
        &self,
        tokens: u64,
        limit: PerMinute,
        minute: Minute,
        now_ms: u64,
    ) -> Option<u64> {
        let needed = (self.tokens + tokens).saturating_sub(limit.most);
        if needed == 0 {
            return None;
        }
        let mut freed = 0;
        let enough = self.calls.iter().find(|call| {
            freed += call.tokens;
            freed >= needed
        });
        let last = enough.or(self.calls.back())?;
        Some(last.at_ms + minute.window_ms() - now_ms)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
