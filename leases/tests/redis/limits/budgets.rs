//! What the calls of a job may cost together.

use std::time::Instant;

use millrace_e2e::redis_server::RedisServer;
use millrace_leases::RedisOptions;
use millrace_leases::limits::{Accounts, Ask, Bill, Grant, Limiter};

use super::{MINUTE, MUCH, NONE, ask, cost, granted, limiter, paid_by_a_job, parts, waits};

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
