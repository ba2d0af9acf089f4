//! The limits of a service on a real server: what several workers let in together.

mod budgets;
mod concurrency;
mod cut_off;
mod forgotten;
mod rates;

use std::time::{Duration, Instant};

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::RedisOptions;
use millrace_leases::limits::{
    Algorithm, Allowed, Ask, Bill, Grant, Limiter, Limits, Minute, RedisLimiter, Settlement,
    Ticket, Verdict,
};
use millrace_protocol::cost::Cost;

/// How long a minute of the tests is.
const MINUTE: Duration = Duration::from_millis(500);

/// One that passes in no test, however busy the machine is.
const LONG_MINUTE: Duration = Duration::from_secs(30);

/// How long a test may ask for what it waits for.
const PATIENCE: Duration = Duration::from_secs(30);

const NONE: Limits = Limits {
    algorithm: Algorithm::SlidingWindow,
    requests_per_minute: None,
    tokens_per_minute: None,
    requests_per_day: None,
    tokens_per_day: None,
    concurrency: 100,
};

fn limiter(redis: &RedisServer) -> RedisLimiter {
    limiter_of(redis, MINUTE)
}

fn limiter_of(redis: &RedisServer, minute: Duration) -> RedisLimiter {
    let options = RedisOptions {
        command_timeout: Duration::from_secs(5),
        ..RedisOptions::new(redis.url())
    };
    RedisLimiter::new(&options, "tenant", "api", Minute::of(minute)).unwrap()
}

fn ask(limits: Limits, tokens: u64) -> Ask {
    Ask {
        limits,
        tokens,
        call_timeout: Duration::from_secs(60),
        bill: None,
    }
}

fn settled(tokens: Option<u64>, verdict: Verdict) -> Settlement {
    Settlement {
        tokens,
        cost: None,
        verdict,
        pause: None,
        allowed: Allowed::default(),
        concurrency: 8,
    }
}

async fn granted(limiter: &dyn Limiter, ask: &Ask) -> Ticket {
    match limiter.ask(ask).await.unwrap() {
        Grant::Granted(ticket) => ticket,
        wait => panic!("{wait:?}"),
    }
}

async fn waits(limiter: &dyn Limiter, ask: &Ask) -> Duration {
    match limiter.ask(ask).await.unwrap() {
        Grant::Wait(wait) => wait,
        granted => panic!("{granted:?}"),
    }
}

/// The moments between which the server let a call in: when it was asked, and when its answer was there.
type Moments = (Instant, Instant);

/// The moments of `calls` that are let in, from several workers that ask as fast as they may.
async fn race(limiters: &[impl Limiter], ask: Ask, calls: usize) -> Vec<Moments> {
    let (each, ask) = (calls / limiters.len(), &ask);
    let of_worker = limiters.iter().map(|limiter| async move {
        let mut let_in = Vec::new();
        while let_in.len() < each {
            let asked = Instant::now();
            match limiter.ask(ask).await.unwrap() {
                Grant::Granted(ticket) => {
                    let_in.push((asked, Instant::now()));
                    let fine = settled(None, Verdict::Fine);
                    limiter.settle(&ticket, &fine).await.unwrap();
                }
                Grant::Wait(wait) => tokio::time::sleep(wait).await,
                other => panic!("{other:?}"),
            }
        }
        let_in
    });
    futures::future::join_all(of_worker).await.concat()
}

/// Whichever moments of theirs they were let in at, no minute held more than `most` of the calls.
fn assert_no_minute_held_more(most: usize, calls: &[Moments]) {
    let (mut asked, mut answered): (Vec<_>, Vec<_>) = calls.iter().copied().unzip();
    asked.sort_unstable();
    answered.sort_unstable();
    for (first, next) in asked.iter().zip(&answered[most..]) {
        let took = next.duration_since(*first);
        assert!(took >= MINUTE, "{} calls in {took:?}", most + 1);
    }
}

/// More than a number of Lua holds exactly.
const MUCH: u64 = 1 << 54;

fn parts(parts: u64) -> Cost {
    Cost::of_parts(parts)
}

/// A call of a job that may pay [`MUCH`] and a hundred.
fn paid_by_a_job(price: u64, paid: Option<u64>) -> Ask {
    let bill = Bill {
        job: "job/uid".to_owned(),
        price: parts(price),
        max: Some(parts(MUCH + 100)),
        paid: paid.map(parts),
    };
    Ask {
        bill: Some(bill),
        ..ask(NONE, 0)
    }
}

fn cost(cost: u64) -> Settlement {
    Settlement {
        cost: Some(parts(cost)),
        ..settled(None, Verdict::Fine)
    }
}
