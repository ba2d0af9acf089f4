//! How many calls are in flight at one time, and which workers they are of.

use std::time::{Duration, Instant};

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::RedisOptions;
use millrace_leases::limits::{Accounts, Ask, Limiter, Limits, Verdict};

use super::{NONE, ask, granted, limiter, paid_by_a_job, parts, settled, waits};

/// Longer than a worker may be silent, and than a server is waited for that was away.
const LONG_SILENCE: Duration = Duration::from_secs(11);

const TWO_AT_A_TIME: Limits = Limits {
    concurrency: 2,
    ..NONE
};

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
