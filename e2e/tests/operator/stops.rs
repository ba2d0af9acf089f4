//! Operators that stop in the middle of a job, in an orderly way and not.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::json;

use crate::jobs::Stage;
use crate::tenant::{JOB, SERVICE};
use crate::world::SHARDS;

/// Longest that an operator may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody takes a Lease sooner that was not given up.
const LEASE_TTL: Duration = Duration::from_secs(15);

/// A stage with a job of which one shard is committed, while the workers pause.
async fn in_mid_job(namespace: &str) -> Option<Stage> {
    let stage = Stage::new(namespace).await?;
    let tenant = &stage.tenant;
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect("a commit", tenant.wait_for_commits(1)).await;
    Some(stage)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_stopped_gives_its_lease_up_and_the_next_one_leads_at_once() {
    let Some(mut stage) = in_mid_job("stopped").await else {
        return;
    };
    stage.operator.signal(libc::SIGTERM);
    let ended = stage.operator.ended(PATIENCE).await;
    assert_eq!(ended, Some(true), "{}", stage.operator.log());
    let leases: Api<Lease> = Api::namespaced(stage.tenant.client.clone(), "stopped");
    let lease = leases.get("millrace-operator").await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity, None);
    stage.operator = stage.another("next").await;
    let started = Instant::now();
    assert!(
        stage.operator.leads(PATIENCE).await,
        "{}",
        stage.operator.log()
    );
    assert!(started.elapsed() < LEASE_TTL, "it waited for the Lease");
    stage.tenant.world.go_on();
    stage.expect_completed(JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_without_its_operator_and_ends_once_there_is_one_again() {
    let Some(mut stage) = in_mid_job("killed").await else {
        return;
    };
    stage.operator.signal(libc::SIGKILL);
    assert_eq!(stage.operator.ended(PATIENCE).await, Some(false));
    let tenant = &stage.tenant;
    tenant.world.go_on();
    let all = tenant.wait_for_commits(SHARDS as usize);
    stage.expect("the other commits", all).await;
    assert_eq!(tenant.world.manifests(), 0);
    stage.operator = stage.another("operator").await;
    stage.expect_completed(JOB).await;
}
