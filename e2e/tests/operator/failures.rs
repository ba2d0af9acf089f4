//! Jobs that end early, and those that somebody else brings about.

use millrace_leases::{
    Claim, FailOutcome, LeaseOptions, LeaseStore, RedisLeaseStore, RedisOptions, RunKey,
};
use millrace_protocol::plan::FIRST_RUN;
use serde_json::json;

use crate::jobs::Stage;
use crate::tenant::{JOB, SERVICE};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_once_more_shards_were_given_up_than_may_be_and_names_them() {
    let Some(stage) = Stage::new("failures").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    let elsewhere = json!({"managedBy": "example.com/another"});
    tenant.create_job("elsewhere", SERVICE, elsewhere).await;
    let limited = json!({"maxFailedIndexes": 0});
    tenant.create_job(JOB, SERVICE, limited).await;
    stage.expect("a commit", tenant.wait_for_commits(1)).await;
    let run = RunKey {
        namespace: tenant.namespace.clone(),
        job: JOB.to_owned(),
        uid: tenant.jobs().get(JOB).await.unwrap().metadata.uid,
        run: FIRST_RUN,
    };
    let redis = RedisOptions::new(stage.redis.url());
    let leases = RedisLeaseStore::new(&redis, &run, LeaseOptions::default()).unwrap();
    let Claim::Lease(lease) = leases.claim("worker").await.unwrap() else {
        panic!("two shards are open");
    };
    let failed = leases.fail(&lease, "unreadable", true).await.unwrap();
    assert_eq!(failed, FailOutcome::Dead);
    assert_eq!(leases.dead(0, 10).await.unwrap(), [lease.shard]);
    let after = leases.dead(lease.shard + 1, 10).await.unwrap();
    assert!(after.is_empty(), "{after:?}");
    let stopped = tenant.wait_for_reason(JOB, "TooManyFailedIndexes");
    stage.expect("the end of the job", stopped).await;
    let status = tenant.jobs().get(JOB).await.unwrap().status.unwrap();
    let shards = status.shards.unwrap();
    assert_eq!((shards.committed, shards.failed), (1, 2));
    let named = status.failed_indexes.unwrap();
    let expected = ["1,2", "0,2", "0,1"];
    assert!(expected.contains(&named.as_str()), "{named}");

    let left_alone = tenant.jobs().get("elsewhere").await.unwrap();
    let seen = left_alone.status.unwrap().observed_generation;
    assert_eq!(seen, Some(-1), "nobody has seen it");
}
