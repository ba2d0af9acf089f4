//! A server that lost what it was told.

use std::time::{Duration, Instant};

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::limits::{Limiter, Limits, PerMinute, Verdict};

use super::{MINUTE, NONE, ask, granted, limiter, limiter_of, settled, waits};

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
    // Long enough for a busy machine to ask several times in it.
    let minute = MINUTE * 2;
    let [one, other] = [(); 2].map(|()| limiter_of(&redis, minute));
    let limits = Limits {
        requests_per_minute: Some(PerMinute::of(2)),
        tokens_per_minute: Some(PerMinute::of(100)),
        ..NONE
    };
    // Whether the call ends before anybody asks again.
    for (key, ends) in [
        ("calls", false),
        ("calls", true),
        ("tokens", false),
        ("tokens", true),
        ("state", false),
    ] {
        let began = Instant::now();
        let ticket = granted(&one, &ask(limits, 60)).await;
        let key = format!("millrace:{{tenant/api}}:limits:{key}");
        assert_eq!(redis.command::<u64>(&["DEL", &key]), 1);
        if ends {
            let fine = settled(Some(10), Verdict::Fine);
            one.settle(&ticket, &fine).await.unwrap();
        }
        waits(&one, &ask(limits, 30)).await;
        waits(&other, &ask(limits, 30)).await;
        assert!(began.elapsed() < minute, "the minute was over before");
        tokio::time::sleep(minute + Duration::from_millis(20)).await;
        granted(&one, &ask(limits, 60)).await;
        waits(&other, &ask(limits, 60)).await;
        // A minute in which nobody asks holds nobody up.
        tokio::time::sleep(minute + Duration::from_millis(20)).await;
    }
}
