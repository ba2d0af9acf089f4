//! Two operators: one writes, the other stands by.

use std::time::Duration;

use millrace_e2e::process::until;
use millrace_e2e::redis_server::RedisServer;
use serde_json::json;

use crate::control_plane::control_plane;
use crate::operator::{Operator, Options};
use crate::tenant::{JOB, SERVICE, Tenant};

/// Longest until an operator notices that another leads, or no longer does.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_away_for_longer_than_its_lease_writes_nothing_more() {
    let Some(api) = control_plane() else { return };
    let client = api.client().await;
    let redis = RedisServer::start();
    let tenant = Tenant::new(client.clone(), "election", &redis.url()).await;
    let start = async |identity| {
        let options = Options {
            namespace: "election",
            redis_url: &redis.url(),
            identity,
            point: None,
        };
        Operator::start(client.clone(), options).await
    };
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    // Each change is something to write for whoever leads.
    let busy = async {
        loop {
            for suspend in [true, false] {
                tenant.suspend(JOB, suspend).await;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }
    };
    let first = start("first").await;
    let second = start("second").await;
    let course = async {
        tenant.wait_for_commits(1).await;
        for operator in [&first, &second] {
            let path = format!("/v1/namespaces/election/inferenceservices/{SERVICE}/backlog");
            let told = operator.ask(&path).await;
            assert!(told.contains(r#""shards":"#), "{told}\n{}", operator.log());
        }
        let (one, other) = (first.proxy.requests(), second.proxy.requests());
        let (leader, next) = match one > 0 {
            true => (&first, &second),
            false => (&second, &first),
        };
        assert!(one == 0 || other == 0, "both write: {one} and {other}");
        leader.signal(libc::SIGSTOP);
        let takes_over = || (next.proxy.requests() > 0).then_some(());
        let taken_over = tokio::task::block_in_place(|| until(PATIENCE, takes_over));
        assert!(taken_over.is_some(), "nobody takes over");
        // All that it sent before it stopped has come by now.
        (leader.proxy.requests(), one > 0)
    };
    let (before, first_led) = tokio::select! {
        led = course => led,
        () = busy => unreachable!("it never ends"),
    };
    let (mut leader, next) = if first_led {
        (first, second)
    } else {
        (second, first)
    };
    leader.signal(libc::SIGCONT);
    let ended = leader.ended(PATIENCE).await;
    assert_eq!(ended, Some(false), "it leads on:\n{}", leader.log());
    assert_eq!(leader.proxy.requests(), before, "{}", leader.log());
    tenant.world.go_on();
    tenant.suspend(JOB, false).await;
    let completed = tokio::time::timeout(PATIENCE, tenant.wait_for_reason(JOB, "Completed"));
    assert!(completed.await.is_ok(), "{}", next.log());
}
