//! The limits of a service on a real server: what several workers let in together.

use std::time::{Duration, Instant};

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::RedisOptions;
use millrace_leases::limits::{
    Accounts, Algorithm, Allowed, Ask, Bill, Grant, Limiter, Limits, MemoryLimiter, Minute,
    PerMinute, RedisLimiter, Settlement, Ticket, Verdict,
};
use millrace_protocol::cost::Cost;

use crate::proxy::Proxy;

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
        command_timeout: Duration::from_millis(500),
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

/// When each of `calls` was let in, from several workers that ask as fast as they may.
async fn race(limiters: &[impl Limiter], ask: Ask, calls: usize) -> Vec<Instant> {
    let (each, ask) = (calls / limiters.len(), &ask);
    let of_worker = limiters.iter().map(|limiter| async move {
        let mut moments = Vec::new();
        while moments.len() < each {
            match limiter.ask(ask).await.unwrap() {
                Grant::Granted(ticket) => {
                    moments.push(Instant::now());
                    let fine = settled(None, Verdict::Fine);
                    limiter.settle(&ticket, &fine).await.unwrap();
                }
                Grant::Wait(wait) => tokio::time::sleep(wait).await,
                other => panic!("{other:?}"),
            }
        }
        moments
    });
    let mut all = futures::future::join_all(of_worker).await.concat();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_race_let_in_no_more_than_a_minute_allows() {
    let redis = RedisServer::start();
    let limits = Limits {
        requests_per_minute: Some(PerMinute::of(20)),
        ..NONE
    };
    let limiters = [limiter(&redis), limiter(&redis), limiter(&redis)];
    let moments = race(&limiters, ask(limits, 0), 60).await;
    for window in moments.windows(21) {
        let took = window[20].duration_since(window[0]);
        // A reply takes a moment to arrive, which varies.
        assert!(took + Duration::from_millis(8) >= MINUTE, "{took:?}");
    }
    let took = moments[59].duration_since(moments[0]);
    assert!(
        took < MINUTE * 3,
        "no more time is lost than must be: {took:?}"
    );
}

#[tokio::test]
async fn tokens_are_shared_and_corrected() {
    let redis = RedisServer::start();
    let [one, other] = [(); 2].map(|()| limiter_of(&redis, LONG_MINUTE));
    let limits = Limits {
        tokens_per_minute: Some(PerMinute::of(100)),
        ..NONE
    };
    let ticket = granted(&one, &ask(limits, 80)).await;
    assert!(waits(&other, &ask(limits, 50)).await > Duration::from_millis(100));
    let fewer = settled(Some(50), Verdict::Fine);
    one.settle(&ticket, &fewer).await.unwrap();
    one.settle(&ticket, &fewer).await.unwrap();
    granted(&other, &ask(limits, 50)).await;
    waits(&one, &ask(limits, 1)).await;
}

/// The limiter of one process, and one of several.
fn both(redis: &RedisServer, minute: Duration) -> [Box<dyn Limiter>; 2] {
    let alone = MemoryLimiter::new(Minute::of(minute));
    [Box::new(alone), Box::new(limiter_of(redis, minute))]
}

#[tokio::test]
async fn a_bucket_lets_a_burst_in_and_then_what_is_refilled_in_one_process_and_in_several() {
    let redis = RedisServer::start();
    let limits = Limits {
        algorithm: Algorithm::TokenBucket,
        requests_per_minute: Some(PerMinute {
            most: 100,
            burst: 20,
        }),
        ..NONE
    };
    for limiter in both(&redis, MINUTE) {
        let began = Instant::now();
        for _ in 0..18 {
            granted(&*limiter, &ask(limits, 0)).await;
        }
        let mut let_in = 18;
        while let_in <= 50 {
            assert!(began.elapsed() < PATIENCE, "{let_in}");
            match limiter.ask(&ask(limits, 0)).await.unwrap() {
                Grant::Granted(_) => let_in += 1,
                Grant::Wait(wait) => tokio::time::sleep(wait).await,
                other => panic!("{other:?}"),
            }
            // A minute refills a hundred, and a busy machine may ask later.
            let refilled = began.elapsed().as_secs_f64() / MINUTE.as_secs_f64() * 100.0;
            assert!(f64::from(let_in) <= 18.0 + refilled, "{let_in}");
        }
    }
}

#[tokio::test]
async fn tokens_of_a_bucket_and_of_a_day_are_corrected_in_one_process_and_in_several() {
    let redis = RedisServer::start();
    for limits in [
        Limits {
            algorithm: Algorithm::TokenBucket,
            tokens_per_minute: Some(PerMinute::of(100)),
            ..NONE
        },
        Limits {
            tokens_per_day: Some(100),
            ..NONE
        },
    ] {
        redis.command::<()>(&["FLUSHALL"]);
        for limiter in both(&redis, LONG_MINUTE) {
            let first = granted(&*limiter, &ask(limits, 90)).await;
            assert!(waits(&*limiter, &ask(limits, 70)).await > Duration::from_millis(100));
            let fewer = settled(Some(20), Verdict::Fine);
            limiter.settle(&first, &fewer).await.unwrap();
            limiter.settle(&first, &fewer).await.unwrap();
            let second = granted(&*limiter, &ask(limits, 70)).await;
            // What was guessed too little counts as well.
            let more = settled(Some(1_000), Verdict::Fine);
            limiter.settle(&second, &more).await.unwrap();
            assert!(waits(&*limiter, &ask(limits, 1)).await > MINUTE);
        }
    }
}

#[tokio::test]
async fn a_day_that_gets_a_limit_counts_what_was_before_it_in_one_process_and_in_several() {
    let redis = RedisServer::start();
    for limiter in both(&redis, LONG_MINUTE) {
        granted(&*limiter, &ask(NONE, 60)).await;
        for limits in [
            Limits {
                tokens_per_day: Some(100),
                ..NONE
            },
            Limits {
                requests_per_day: Some(1),
                ..NONE
            },
        ] {
            assert!(waits(&*limiter, &ask(limits, 50)).await > MINUTE);
        }
    }
}

#[tokio::test]
async fn calls_go_down_to_one_and_up_again_for_all_workers() {
    let redis = RedisServer::start();
    let (one, other) = (limiter(&redis), limiter(&redis));
    let limits = Limits {
        concurrency: 8,
        ..NONE
    };
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let ticket = granted(&one, &ask(limits, 0)).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        one.settle(&ticket, &settled(None, Verdict::TooMuch))
            .await
            .unwrap();
    }
    let only = granted(&other, &ask(limits, 0)).await;
    waits(&one, &ask(limits, 0)).await;
    other
        .settle(&only, &settled(None, Verdict::Fine))
        .await
        .unwrap();
    for _ in 0..40 {
        let ticket = granted(&one, &ask(limits, 0)).await;
        one.settle(&ticket, &settled(None, Verdict::Fine))
            .await
            .unwrap();
    }
    for _ in 0..8 {
        granted(&other, &ask(limits, 0)).await;
    }
    waits(&one, &ask(limits, 0)).await;
}

#[tokio::test]
async fn a_pause_and_a_day_hold_everyone_back() {
    let redis = RedisServer::start();
    let (one, other) = (limiter(&redis), limiter(&redis));
    let limits = Limits {
        requests_per_day: Some(2),
        ..NONE
    };
    let ticket = granted(&one, &ask(limits, 0)).await;
    let paused = Settlement {
        pause: Some(Duration::from_secs(1)),
        ..settled(None, Verdict::Nothing)
    };
    one.settle(&ticket, &paused).await.unwrap();
    assert!(waits(&other, &ask(limits, 0)).await > Duration::from_millis(200));
    tokio::time::sleep(Duration::from_millis(1_010)).await;
    granted(&other, &ask(limits, 0)).await;
    assert!(
        waits(&one, &ask(limits, 0)).await > MINUTE,
        "the day is used up"
    );
}

#[tokio::test]
async fn what_the_api_said_of_its_limits_holds_for_all_workers_until_it_says_otherwise() {
    let redis = RedisServer::start();
    let [one, other] = [(); 2].map(|()| limiter_of(&redis, LONG_MINUTE));
    let limits = Limits {
        tokens_per_minute: Some(PerMinute::of(1_000)),
        ..NONE
    };
    let ask = ask(limits, 30);
    let said = |requests, tokens| Settlement {
        allowed: Allowed { requests, tokens },
        ..settled(None, Verdict::Fine)
    };
    let ticket = granted(&one, &ask).await;
    one.settle(&ticket, &said(Some(2), Some(5_000)))
        .await
        .unwrap();
    let ticket = granted(&other, &ask).await;
    waits(&other, &ask).await;
    other.settle(&ticket, &said(Some(9), None)).await.unwrap();
    let ticket = granted(&one, &ask).await;
    one.settle(&ticket, &said(None, Some(100))).await.unwrap();
    waits(&other, &ask).await;
}

#[tokio::test]
async fn a_server_that_forgot_everything_lets_nothing_in_for_a_minute() {
    let redis = RedisServer::start();
    let one = limiter(&redis);
    granted(&one, &ask(NONE, 0)).await;
    redis.command::<()>(&["FLUSHALL"]);
    waits(&one, &ask(NONE, 0)).await;
    tokio::time::sleep(MINUTE + Duration::from_millis(20)).await;
    granted(&one, &ask(NONE, 0)).await;
}

#[tokio::test]
async fn a_worker_that_asks_first_and_knows_nothing_hides_no_loss_from_those_who_know() {
    let redis = RedisServer::start();
    let (one, other) = (limiter(&redis), limiter(&redis));
    granted(&one, &ask(NONE, 0)).await;
    redis.command::<()>(&["FLUSHALL"]);
    let began = Instant::now();
    granted(&other, &ask(NONE, 0)).await;
    waits(&one, &ask(NONE, 0)).await;
    waits(&other, &ask(NONE, 0)).await;
    tokio::time::sleep((MINUTE + Duration::from_millis(20)).saturating_sub(began.elapsed())).await;
    granted(&other, &ask(NONE, 0)).await;
    // What it knew of counts no more.
    granted(&one, &ask(NONE, 0)).await;
}

#[tokio::test]
async fn a_server_that_forgot_the_last_calls_alone_lets_nothing_in_for_a_minute() {
    let redis = RedisServer::start();
    let (one, other) = (limiter(&redis), limiter(&redis));
    granted(&one, &ask(NONE, 0)).await;
    granted(&other, &ask(NONE, 0)).await;
    // As after a crash that lost the end of what was written.
    redis.command::<()>(&["HSET", "millrace:{tenant/api}:limits:state", "count", "1"]);
    let began = Instant::now();
    for limiter in [&other, &one, &other] {
        waits(limiter, &ask(NONE, 0)).await;
    }
    tokio::time::sleep((MINUTE + Duration::from_millis(30)).saturating_sub(began.elapsed())).await;
    granted(&one, &ask(NONE, 0)).await;
}

#[tokio::test]
async fn a_server_that_gave_up_one_key_lets_nothing_in_for_a_minute_and_counts_right_after_it() {
    let redis = RedisServer::start();
    let (one, other) = (limiter(&redis), limiter(&redis));
    let limits = Limits {
        requests_per_minute: Some(PerMinute::of(2)),
        tokens_per_minute: Some(PerMinute::of(100)),
        ..NONE
    };
    for key in ["calls", "tokens", "state"] {
        let began = Instant::now();
        granted(&one, &ask(limits, 60)).await;
        let key = format!("millrace:{{tenant/api}}:limits:{key}");
        assert_eq!(redis.command::<u64>(&["DEL", &key]), 1);
        waits(&one, &ask(limits, 30)).await;
        waits(&other, &ask(limits, 30)).await;
        assert!(began.elapsed() < MINUTE, "the minute was over before");
        tokio::time::sleep(MINUTE + Duration::from_millis(20)).await;
        granted(&one, &ask(limits, 60)).await;
        waits(&other, &ask(limits, 60)).await;
        // A minute in which nobody asks holds nobody up.
        tokio::time::sleep(MINUTE + Duration::from_millis(20)).await;
    }
}

/// A limiter that reaches the server through a network of its own.
fn behind(proxy: &Proxy) -> RedisLimiter {
    let options = RedisOptions {
        command_timeout: Duration::from_millis(300),
        ..RedisOptions::new(format!("redis://127.0.0.1:{}", proxy.port))
    };
    RedisLimiter::new(&options, "tenant", "api", Minute::of(MINUTE)).unwrap()
}

/// Calls that the server takes for being made, once there are `expected`.
async fn in_flight(redis: &RedisServer, expected: u64) {
    let key = "millrace:{tenant/api}:limits:in-flight";
    let deadline = Instant::now() + Duration::from_secs(30);
    while redis.command::<u64>(&["ZCARD", key]) != expected {
        assert!(Instant::now() < deadline, "{expected} calls were expected");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_call_whose_grant_was_lost_is_neither_in_flight_nor_paid_nor_a_token_too_many() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    let (one, other) = (behind(&proxy), limiter(&redis));
    let limits = Limits {
        concurrency: 2,
        tokens_per_minute: Some(PerMinute::of(100)),
        ..NONE
    };
    let ask = Ask {
        limits,
        tokens: 80,
        ..paid_by_a_job(40, Some(0))
    };
    let ticket = granted(
        &other,
        &Ask {
            tokens: 0,
            ..ask.clone()
        },
    )
    .await;
    other.settle(&ticket, &cost(1)).await.unwrap();
    let ticket = granted(
        &one,
        &Ask {
            tokens: 0,
            ..ask.clone()
        },
    )
    .await;
    one.settle(&ticket, &cost(1)).await.unwrap();

    proxy.lose_replies();
    waits(&one, &ask).await;
    in_flight(&redis, 1).await;
    proxy.heal();
    let ticket = granted(&one, &ask).await;
    in_flight(&redis, 1).await;
    one.settle(&ticket, &cost(7)).await.unwrap();
    let accounts = Accounts::new(&RedisOptions::new(redis.url()), "tenant", "api").unwrap();
    let account = accounts.find("job/uid").await.unwrap().unwrap();
    assert_eq!((account.paid, account.open), (parts(9), 0));
}

#[tokio::test]
async fn the_end_of_a_call_that_could_not_be_told_is_told_before_the_next_one() {
    let mut redis = RedisServer::start();
    let one = limiter(&redis);
    let ticket = granted(&one, &paid_by_a_job(40, Some(0))).await;
    redis.stop();
    one.settle(&ticket, &cost(3)).await.unwrap();
    waits(&one, &paid_by_a_job(40, None)).await;
    redis.start_again();
    in_flight(&redis, 1).await;
    let next = loop {
        match one.ask(&paid_by_a_job(5, None)).await.unwrap() {
            Grant::Granted(ticket) => break ticket,
            Grant::Wait(_) => {}
            other => panic!("{other:?}"),
        }
    };
    in_flight(&redis, 1).await;
    one.settle(&next, &cost(5)).await.unwrap();
    let accounts = Accounts::new(&RedisOptions::new(redis.url()), "tenant", "api").unwrap();
    let account = accounts.find("job/uid").await.unwrap().unwrap();
    assert_eq!((account.paid, account.open), (parts(8), 0));
}

/// Lets time pass for what is known of who is alive.
fn age(redis: &RedisServer, time: Duration, is_server_away: bool) {
    let key = |name: &str| format!("millrace:{{tenant/api}}:limits:{name}");
    let script = "for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
        redis.call('ZINCRBY', KEYS[1], -ARGV[1], worker)
    end
    redis.call('HINCRBY', KEYS[2], 'alive_until', -ARGV[1])
    if ARGV[2] == 'true' then
        redis.call('HINCRBY', KEYS[2], 'heard_at', -ARGV[1])
    end";
    let (workers, state) = (key("workers"), key("state"));
    let time_ms = time.as_millis().to_string();
    let is_server_away = is_server_away.to_string();
    redis.command::<()>(&[
        "EVAL",
        script,
        "2",
        &workers,
        &state,
        &time_ms,
        &is_server_away,
    ]);
}

/// Longer than a worker may be silent, and than a server is waited for that was away.
const LONG_SILENCE: Duration = Duration::from_secs(11);

const TWO_AT_A_TIME: Limits = Limits {
    concurrency: 2,
    ..NONE
};

#[tokio::test]
async fn the_calls_of_a_killed_worker_are_in_nobodys_way_and_still_paid() {
    let redis = RedisServer::start();
    let (killed, other) = (limiter(&redis), limiter(&redis));
    let ask = Ask {
        limits: TWO_AT_A_TIME,
        ..paid_by_a_job(40, Some(0))
    };
    granted(&killed, &ask).await;
    granted(&killed, &ask).await;
    waits(&other, &ask).await;
    drop(killed);
    age(&redis, LONG_SILENCE, false);
    let free = Ask { bill: None, ..ask };
    granted(&other, &free).await;
    granted(&other, &free).await;
    waits(&other, &free).await;
    let accounts = Accounts::new(&RedisOptions::new(redis.url()), "tenant", "api").unwrap();
    let account = accounts.find("job/uid").await.unwrap().unwrap();
    assert_eq!((account.paid, account.open), (parts(80), 2));
}

#[tokio::test]
async fn a_live_worker_is_heard_of_while_its_call_is_slow() {
    let redis = RedisServer::start();
    let (slow, other) = (limiter(&redis), limiter(&redis));
    let ask = ask(TWO_AT_A_TIME, 0);
    granted(&slow, &ask).await;
    granted(&slow, &ask).await;
    age(&redis, LONG_SILENCE, false);
    let key = "millrace:{tenant/api}:limits:workers";
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (seconds, _) = redis.command::<(u64, u64)>(&["TIME"]);
        let lately = ((seconds - 9) * 1000).to_string();
        if redis.command::<u64>(&["ZCOUNT", key, &lately, "+inf"]) == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "it says nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waits(&other, &ask).await;
}

#[tokio::test]
async fn a_server_that_was_away_takes_nobody_for_dead() {
    let redis = RedisServer::start();
    let (slow, other) = (limiter(&redis), limiter(&redis));
    let ask = ask(TWO_AT_A_TIME, 0);
    granted(&slow, &ask).await;
    let ticket = granted(&slow, &ask).await;
    age(&redis, LONG_SILENCE, true);
    waits(&other, &ask).await;
    slow.settle(&ticket, &settled(None, Verdict::Fine))
        .await
        .unwrap();
    granted(&other, &ask).await;
    waits(&other, &ask).await;
}

#[tokio::test]
async fn a_frozen_server_lets_nothing_in_within_a_bounded_time_and_leaks_nothing() {
    let redis = RedisServer::start();
    let one = limiter(&redis);
    let limits = Limits {
        concurrency: 1,
        ..NONE
    };
    let ticket = granted(&one, &ask(limits, 0)).await;
    redis.freeze();
    let frozen = Instant::now();
    one.settle(&ticket, &settled(None, Verdict::Fine))
        .await
        .unwrap();
    for _ in 0..2 {
        waits(&one, &ask(limits, 0)).await;
    }
    assert!(frozen.elapsed() < Duration::from_secs(30));
    redis.thaw();
    let deadline = Instant::now() + Duration::from_secs(30);
    // One at a time: what was asked meanwhile is in nobody's way.
    for _ in 0..3 {
        let ticket = loop {
            match one.ask(&ask(limits, 0)).await.unwrap() {
                Grant::Granted(ticket) => break ticket,
                _ => assert!(Instant::now() < deadline, "nothing is let in"),
            }
        };
        one.settle(&ticket, &settled(None, Verdict::Fine))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_makes_no_calls_and_what_the_others_make_counts_when_it_is_back() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis.port()).await;
    let limits = Limits {
        requests_per_minute: Some(PerMinute::of(12)),
        ..NONE
    };
    let ask = ask(limits, 0);
    let cut_off = behind(&proxy);
    granted(&cut_off, &ask).await;
    proxy.lose_replies();
    let others = [limiter(&redis), limiter(&redis)];
    let alone = async {
        let began = Instant::now();
        while began.elapsed() < MINUTE * 2 {
            waits(&cut_off, &ask).await;
        }
        proxy.heal();
        race(std::slice::from_ref(&cut_off), ask.clone(), 12).await
    };
    let (back, meanwhile) = tokio::join!(alone, race(&others, ask.clone(), 60));
    let mut all = [back, meanwhile].concat();
    all.sort_unstable();
    for window in all.windows(13) {
        let took = window[12].duration_since(window[0]);
        assert!(took + Duration::from_millis(8) >= MINUTE, "{took:?}");
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

#[tokio::test]
async fn workers_share_what_a_job_may_pay_and_know_it_to_the_last_part() {
    let redis = RedisServer::start();
    let (one, other) = (limiter(&redis), limiter(&redis));
    let accounts = Accounts::new(&RedisOptions::new(redis.url()), "tenant", "api").unwrap();
    let account = || async { accounts.find("job/uid").await.unwrap() };
    assert_eq!(account().await, None);
    let unfilled = one.ask(&paid_by_a_job(40, None)).await.unwrap();
    assert_eq!(unfilled, Grant::Unfilled);
    let first = granted(&one, &paid_by_a_job(41, Some(MUCH + 1))).await;
    let second = granted(&other, &paid_by_a_job(40, None)).await;
    waits(&one, &paid_by_a_job(40, None)).await;
    one.settle(&first, &cost(31)).await.unwrap();
    one.settle(&first, &cost(31)).await.unwrap();
    let paid = account().await.unwrap();
    assert_eq!((paid.paid, paid.open), (parts(MUCH + 1 + 31 + 40), 1));
    other.settle(&second, &cost(39)).await.unwrap();
    let last = granted(&one, &paid_by_a_job(90, None)).await;
    let waits_for_it = other.ask(&paid_by_a_job(1, None)).await.unwrap();
    assert!(matches!(waits_for_it, Grant::Wait(_)), "{waits_for_it:?}");
    assert!(!account().await.unwrap().is_spent(parts(MUCH + 100)));
    one.settle(&last, &cost(29)).await.unwrap();
    let spent = other.ask(&paid_by_a_job(1, None)).await.unwrap();
    assert_eq!(spent, Grant::Spent);
    assert!(account().await.unwrap().is_spent(parts(MUCH + 100)));
    let of_another = Ask {
        bill: paid_by_a_job(5, Some(0)).bill.map(|bill| Bill {
            job: "another/uid".to_owned(),
            ..bill
        }),
        ..ask(NONE, 0)
    };
    granted(&one, &of_another).await;
    accounts.close("job/uid").await.unwrap();
    assert_eq!(account().await, None);
}

#[tokio::test]
async fn what_a_job_paid_is_asked_for_when_the_server_forgot_it_and_never_falls() {
    let redis = RedisServer::start();
    let one = limiter(&redis);
    let ticket = granted(&one, &paid_by_a_job(10, Some(0))).await;
    redis.command::<()>(&["FLUSHALL"]);
    let asked = one.ask(&paid_by_a_job(10, None)).await.unwrap();
    assert_eq!(asked, Grant::Unfilled);
    waits(&one, &paid_by_a_job(10, Some(60))).await;
    // Who knows of less says nothing new, and a call that was forgotten is not taken back.
    waits(&one, &paid_by_a_job(10, Some(50))).await;
    one.settle(&ticket, &cost(3)).await.unwrap();
    let accounts = Accounts::new(&RedisOptions::new(redis.url()), "tenant", "api").unwrap();
    let account = accounts.find("job/uid").await.unwrap().unwrap();
    assert_eq!((account.paid, account.open), (parts(60), 0));
}

#[tokio::test]
async fn a_job_with_a_budget_waits_while_nobody_knows_what_others_pay() {
    let mut redis = RedisServer::start();
    let one = limiter(&redis);
    redis.stop();
    let stopped = Instant::now();
    while stopped.elapsed() < MINUTE * 2 {
        let wait = waits(&one, &paid_by_a_job(1, Some(0))).await;
        tokio::time::sleep(wait.min(MINUTE / 10)).await;
    }
    redis.start_again();
    tokio::time::sleep(MINUTE).await;
    granted(&one, &paid_by_a_job(1, Some(0))).await;
}
