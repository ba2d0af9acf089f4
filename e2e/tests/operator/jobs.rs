//! Jobs of users who ask for odd things, and of clusters that lack some.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use millrace_crds::batch_job::RouteCounts;
use millrace_e2e::redis_server::RedisServer;
use millrace_leases::{JobRegistry, RedisOptions};
use millrace_protocol::tally::Tally;
use serde_json::{Value, json};

use crate::control_plane::control_plane;
use crate::operator::{Operator, Options};
use crate::picture::Painter;
use crate::scenario::Scenario;
use crate::tenant::{JOB, SERVICE, Tenant};
use crate::world::{SHARDS, route_of, tally_of};

/// Longest a test may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long nothing may be written before everything counts as done.
const QUIET: Duration = Duration::from_secs(3);

/// A tenant with an operator of its own.
pub struct Stage {
    /// Who makes services and jobs.
    pub tenant: Tenant,
    /// The operator.
    pub operator: Operator,
    /// The Redis of the leases.
    pub redis: RedisServer,
}

impl Stage {
    /// Sets one up in a namespace; nothing where there is no API server.
    pub async fn new(namespace: &str) -> Option<Self> {
        let client = control_plane()?.client().await;
        let redis = RedisServer::start();
        let tenant = Tenant::new(client, namespace, &redis.url()).await;
        Some(Self {
            operator: start(&tenant, &redis, "operator").await,
            tenant,
            redis,
        })
    }

    /// Another operator, which stands for election by this name.
    pub async fn another(&self, identity: &str) -> Operator {
        start(&self.tenant, &self.redis, identity).await
    }

    /// Waits for what must come, and tells what the operator says if it does not.
    pub async fn expect<T>(&self, what: &str, course: impl Future<Output = T>) -> T {
        let ended = tokio::time::timeout(PATIENCE, course).await;
        ended.unwrap_or_else(|_| {
            let trouble = self.tenant.world.trouble();
            panic!("{what} does not come; {trouble:?}\n{}", self.operator.log())
        })
    }

    /// Waits until the operator writes nothing any more.
    pub async fn quiet(&self) {
        let mut written = self.operator.proxy.requests();
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.operator.proxy.requests();
            if now == written {
                return;
            }
            written = now;
        }
    }

    /// Waits for the end of the job, which must count every row once.
    pub async fn expect_completed(&self, name: &str) {
        let completed = self.tenant.wait_for_reason(name, "Completed");
        self.expect("the end of the job", completed).await;
        let job = self.tenant.jobs().get(name).await.unwrap();
        let total: Tally = (0..SHARDS).map(tally_of).sum();
        let status = job.status.unwrap();
        assert_eq!(json!(status.rows), json!(total.rows));
        assert_eq!(status.tokens, Some(total.tokens));
        assert_eq!(status.routes, [RouteCounts::from(&route_of(total))]);
        assert_eq!(self.tenant.world.manifests(), 1);
    }
}

async fn start(tenant: &Tenant, redis: &RedisServer, identity: &str) -> Operator {
    let options = Options {
        namespace: &tenant.namespace,
        redis_url: &redis.url(),
        identity,
        point: None,
    };
    Operator::start(tenant.client.clone(), options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_for_a_minute_once_everything_is_done() {
    let Some(stage) = Stage::new("quiet").await else {
        return;
    };
    let course = Scenario::Suspended.play(&stage.tenant);
    stage.expect("the end", course).await;
    stage.quiet().await;
    let before = stage.operator.proxy.requests();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.operator.proxy.requests(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_253_characters_give_children_names_of_at_most_63() {
    let Some(stage) = Stage::new("long-names").await else {
        return;
    };
    let (service, job) = ("s".repeat(253), format!("{}.j", "j".repeat(251)));
    stage.tenant.create_service(&service, json!({})).await;
    stage.tenant.create_job(&job, &service, json!({})).await;
    stage.expect_completed(&job).await;
    let painter = Painter::new(stage.tenant.client.clone(), &stage.redis.url()).await;
    let names = painter.picture("long-names").await.into_keys();
    let made_by_operator = |name: &String| {
        let made_by_others = ["BatchJob/", "InferenceService/", "Pod/", "the workers"];
        !made_by_others.iter().any(|other| name.starts_with(other))
    };
    let made: Vec<String> = names.filter(made_by_operator).collect();
    assert_eq!(made.len(), 10, "{made:#?}");
    for name in made {
        let (_, name) = name.split_once('/').unwrap();
        assert!(name.len() <= 63, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_suspended_a_hundred_times_counts_every_row_once() {
    let Some(stage) = Stage::new("suspended-often").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect("a commit", tenant.wait_for_commits(1)).await;
    for toggle in 0..100 {
        if toggle == 50 {
            tenant.world.go_on();
        }
        tenant.suspend(JOB, toggle % 2 == 0).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stage.expect_completed(JOB).await;
    let written = stage
        .operator
        .proxy
        .instants("PATCH batchjobs/embed/status");
    assert!(written.len() > 2, "{written:?}");
    // They are a second apart when they are sent; how long each is on its way varies on a busy machine.
    let gaps = written.windows(2).map(|pair| pair[1] - pair[0]);
    let shortest = gaps.min().unwrap();
    assert!(shortest >= Duration::from_millis(500), "{shortest:?}");
    let (took, gaps) = (written[written.len() - 1] - written[0], written.len() - 1);
    let least = Duration::from_millis(950) * gaps as u32;
    assert!(took >= least, "{gaps} gaps in {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_secret_is_missing_says_so_and_goes_on_once_it_is_there() {
    let Some(stage) = Stage::new("missing-secret").await else {
        return;
    };
    let tenant = &stage.tenant;
    let secrets = json!({"secrets": [{"name": "bucket"}]});
    tenant.create_service(SERVICE, secrets).await;
    let credentials = json!({"credentials": {"name": "bucket"}});
    tenant.create_job(JOB, SERVICE, credentials).await;
    let said = async {
        loop {
            let message = tenant.message(JOB).await.unwrap_or_default();
            if message.contains("secret \"bucket\" not found") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    stage.expect("the reason", said).await;
    tenant.create_secret("bucket").await;
    stage.expect_completed(JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_gone_at_once_while_redis_is_away_and_its_workers_hear_of_it_later() {
    let Some(mut stage) = Stage::new("deleted").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect("a commit", tenant.wait_for_commits(1)).await;
    let job = tenant.jobs().get(JOB).await.unwrap();
    assert_eq!(job.metadata.finalizers, None);
    stage.redis.stop();
    let tenant = &stage.tenant;
    tenant.delete_job(JOB).await;
    assert!(tenant.jobs().get_opt(JOB).await.unwrap().is_none());
    // The operator sees it go while nobody can be told.
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.redis.start_again();
    let redis = RedisOptions::new(stage.redis.url());
    let registry = JobRegistry::new(&redis, "deleted", SERVICE).unwrap();
    let told = async {
        while !registry.list().await.is_ok_and(|jobs| jobs.is_empty()) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    stage.expect("the workers' news", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_gone_at_once_while_its_store_is_away_and_its_steps_go_with_it() {
    let Some(stage) = Stage::new("store-away").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.world.take_store_away(true);
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    let jobs: Api<Job> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let step = format!("{JOB}-plan");
    let begun = await_condition(jobs.clone(), &step, |it: Option<&Job>| it.is_some());
    stage.expect("the step that plans", begun).await.unwrap();
    tenant.delete_job(JOB).await;
    assert!(tenant.jobs().get_opt(JOB).await.unwrap().is_none());
    let ended = await_condition(jobs, &step, |it: Option<&Job>| it.is_none());
    stage.expect("the end of the step", ended).await.unwrap();
    tenant.world.take_store_away(false);
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect_completed(JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_pods_are_rejected_says_why_and_serves_once_its_spec_is_mended() {
    let Some(stage) = Stage::new("rejected-service").await else {
        return;
    };
    let tenant = &stage.tenant;
    let with_limits = |limit: &str| {
        let resources = json!({"requests": {"cpu": "4"}, "limits": {"cpu": limit}});
        json!({"template": {"resources": resources}})
    };
    tenant.create_service(SERVICE, with_limits("2")).await;
    let rejected = tenant.wait_for_readiness(SERVICE, "Rejected");
    let message = stage.expect("the reason", rejected).await;
    assert!(
        message.contains("must be less than or equal to cpu limit"),
        "{message}"
    );
    tenant.change_service(SERVICE, with_limits("8")).await;
    let asleep = tenant.wait_for_readiness(SERVICE, "Asleep");
    stage.expect("the service", asleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cannot_read_the_files_of_a_workers_pod() {
    let Some(stage) = Stage::new("files").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.create_service(SERVICE, json!({})).await;
    let input = json!({"input": {"uris": ["file:///var/run/millrace/secrets/bucket/key"]}});
    tenant.create_job(JOB, SERVICE, input).await;
    let refused = tenant.wait_for_reason(JOB, "LocalPath");
    stage.expect("the reason", refused).await;
    let message = tenant.message(JOB).await.unwrap();
    assert!(
        message.starts_with("spec.input.uris[0] is a path"),
        "{message}"
    );
}

/// Lets a namespace have so many objects of a kind. Its status is a controller's to write, and nothing
/// is admitted without.
async fn allow(tenant: &Tenant, kind: &str, count: &str) {
    let quotas: Api<ResourceQuota> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let (hard, used) = (json!({kind: count}), json!({kind: "0"}));
    let quota = json!({"metadata": {"name": "quota"}, "spec": {"hard": hard}});
    let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
    quotas.create(&PostParams::default(), &quota).await.ok();
    let spec: Patch<Value> = Patch::Merge(json!({"spec": {"hard": hard}}));
    let status: Patch<Value> = Patch::Merge(json!({"status": {"hard": hard, "used": used}}));
    let params = PatchParams::default();
    quotas.patch("quota", &params, &spec).await.unwrap();
    quotas
        .patch_status("quota", &params, &status)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_quota_forbids_says_why_and_begins_once_there_is_room() {
    let Some(stage) = Stage::new("quota").await else {
        return;
    };
    let tenant = &stage.tenant;
    allow(tenant, "count/jobs.batch", "0").await;
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    let rejected = tenant.wait_for_reason(JOB, "Rejected");
    stage.expect("the reason", rejected).await;
    let message = tenant.message(JOB).await.unwrap();
    assert!(message.contains("exceeded quota: quota"), "{message}");
    allow(tenant, "count/jobs.batch", "9").await;
    stage.expect_completed(JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_pod_a_quota_forbids_says_why_and_begins_once_there_is_room() {
    let Some(stage) = Stage::new("pod-quota").await else {
        return;
    };
    let tenant = &stage.tenant;
    allow(tenant, "pods", "0").await;
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    let told = async {
        loop {
            let message = tenant.message(JOB).await.unwrap_or_default();
            if message.contains("exceeded quota: quota") {
                return message;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let message = stage.expect("the reason", told).await;
    assert!(message.starts_with("the run is being planned"), "{message}");
    allow(tenant, "pods", "9").await;
    stage.expect_completed(JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_job_names_is_told_by_a_pod_where_nothing_was_finished() {
    let Some(stage) = Stage::new("notified").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.create_service(SERVICE, json!({})).await;
    // The Secret is not there, so the pod waits, and nobody waits for it.
    let receiver = json!({"url": "https://example.com/hook", "secretRef": {"name": "hook"}});
    let cancelled = json!({"cancel": true, "notify": receiver});
    tenant.create_job(JOB, SERVICE, cancelled).await;
    let over = tenant.wait_for_reason(JOB, "Cancelled");
    stage.expect("the end of the job", over).await;
    let jobs: Api<Job> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let told = jobs.get(&format!("{JOB}-notify")).await.unwrap();
    let told = json!(told.spec.unwrap().template.spec.unwrap().containers[0].env);
    let event = (told.as_array().unwrap().iter())
        .find(|variable| variable["name"] == "MILLRACE_NOTIFY_EVENT")
        .and_then(|variable| variable["value"].as_str());
    let event: Value = serde_json::from_str(event.unwrap()).unwrap();
    assert_eq!(event["type"], "dev.millrace.batchjob.failed");
    assert_eq!(event["data"]["reason"], "Cancelled");
    assert_eq!(event["subject"], format!("{}/{JOB}", tenant.namespace));
}
