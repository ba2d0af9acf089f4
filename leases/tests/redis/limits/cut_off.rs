//! Workers that the server does not hear, or that do not hear it.

use std::time::{Duration, Instant};

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::RedisOptions;
use millrace_leases::limits::{
    Accounts, Ask, Grant, Limiter, Limits, Minute, PerMinute, RedisLimiter, Verdict,
};

use super::{
    MINUTE, NONE, ask, assert_no_minute_held_more, cost, granted, limiter, paid_by_a_job, parts,
    race, settled, waits,
};
use crate::proxy::Proxy;

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
    assert_no_minute_held_more(12, &[back, meanwhile].concat());
}
