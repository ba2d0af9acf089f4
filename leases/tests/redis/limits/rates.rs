//! How many requests and tokens a window, a bucket and a day let in, in one process and in several.

use std::time::{Duration, Instant};

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::limits::{
    Algorithm, Allowed, Grant, Limiter, Limits, MemoryLimiter, Minute, PerMinute, Settlement,
    Verdict,
};

use super::{
    LONG_MINUTE, MINUTE, NONE, PATIENCE, ask, assert_no_minute_held_more, granted, limiter,
    limiter_of, race, settled, waits,
};

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_race_let_in_no_more_than_a_minute_allows() {
    let redis = RedisServer::start();
    let limits = Limits {
        requests_per_minute: Some(PerMinute::of(20)),
        ..NONE
    };
    let limiters = [limiter(&redis), limiter(&redis), limiter(&redis)];
    let calls = race(&limiters, ask(limits, 0), 60).await;
    assert_no_minute_held_more(20, &calls);
    let answered = calls.iter().map(|(_, answered)| *answered);
    let took = answered.clone().max().unwrap() - answered.min().unwrap();
    assert!(
        took < MINUTE * 6,
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
