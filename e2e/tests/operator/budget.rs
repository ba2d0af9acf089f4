//! Jobs that may spend so much and no more, beside an operator and the account that workers share.

use std::time::Duration;

use millrace_crds::batch_job::Estimate;
use millrace_leases::RedisOptions;
use millrace_leases::limits::{
    Algorithm, Allowed, Ask, Bill, Grant, Limiter, Limits, Minute, RedisLimiter, Settlement,
    Verdict, account,
};
use millrace_protocol::cost::Cost;
use serde_json::json;

use crate::jobs::Stage;
use crate::tenant::{JOB, SERVICE};
use crate::world::forecast;

fn cost(text: &str) -> Cost {
    text.parse().unwrap()
}

/// A worker's call that costs so much.
async fn pay(limiter: &RedisLimiter, uid: &str, price: &str) {
    let bill = Bill {
        job: account(JOB, Some(uid)),
        price: cost(price),
        max: None,
        paid: Some(Cost::default()),
    };
    let ask = Ask {
        limits: Limits {
            algorithm: Algorithm::SlidingWindow,
            requests_per_minute: None,
            tokens_per_minute: None,
            requests_per_day: None,
            tokens_per_day: None,
            concurrency: 5,
        },
        tokens: 0,
        call_timeout: Duration::from_secs(60),
        bill: Some(bill),
    };
    let Grant::Granted(ticket) = limiter.ask(&ask).await.unwrap() else {
        panic!("nobody else makes calls");
    };
    let settlement = Settlement {
        tokens: None,
        cost: Some(cost(price)),
        verdict: Verdict::Fine,
        pause: None,
        allowed: Allowed::default(),
        concurrency: 5,
    };
    limiter.settle(&ticket, &settlement).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_budget_is_spent_ends_and_goes_on_when_it_is_raised() {
    let Some(stage) = Stage::new("budget").await else {
        return;
    };
    let tenant = &stage.tenant;
    let remote = json!({
        "baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m",
        "pricing": {"inputPerMillionTokens": "1", "outputPerMillionTokens": "2", "currency": "EUR"},
    });
    tenant.world.pause_after(1);
    let service = json!({"models": [], "remote": remote});
    tenant.create_service(SERVICE, service).await;
    // The shards that are not done at the end of the budget are none that were given up.
    let budget = json!({"budget": {"maxCost": "2"}, "maxFailedIndexes": 0});
    tenant.create_job(JOB, SERVICE, budget).await;
    stage.expect("a commit", tenant.wait_for_commits(1)).await;
    let uid = tenant.jobs().get(JOB).await.unwrap().metadata.uid.unwrap();
    let redis = RedisOptions::new(stage.redis.url());
    let limiter = RedisLimiter::new(&redis, "budget", SERVICE, Minute::default()).unwrap();
    pay(&limiter, &uid, "1.5").await;
    pay(&limiter, &uid, "0.75").await;
    let spent = tenant.wait_for_reason(JOB, "BudgetSpent");
    stage.expect("the end of the budget", spent).await;
    let status = tenant.jobs().get(JOB).await.unwrap().status.unwrap();
    let found = status.cost.unwrap();
    assert_eq!(
        (found.total, found.currency.as_str()),
        (cost("2.25"), "EUR")
    );
    assert_eq!(status.shards.unwrap().committed, 1);
    assert_eq!(status.estimate, Some(Estimate::from(&forecast())));

    tenant.world.go_on();
    let more = json!({"budget": {"maxCost": "5"}});
    tenant.change_job(JOB, more).await;
    let completed = tenant.wait_for_reason(JOB, "Completed");
    stage.expect("the end of the job", completed).await;
    let status = tenant.jobs().get(JOB).await.unwrap().status.unwrap();
    assert_eq!(status.cost.unwrap().total, cost("2.25"));
    assert_eq!(status.progress.as_deref(), Some("100%"));
}
