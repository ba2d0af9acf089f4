//! What users and others do while jobs are at work.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use millrace_leases::{JobRegistry, RedisOptions};
use serde_json::{Value, json};

use crate::control_plane::control_plane;
use crate::jobs::Stage;
use crate::picture::Painter;
use crate::tenant::{self, JOB, SERVICE, deployment_of};
use crate::world::SHARDS;

/// How often is looked at what gives no event.
const PAUSE: Duration = Duration::from_millis(100);

/// The operator's name in server-side apply.
const OPERATOR: &str = "millrace-operator";

/// How many visits to jobs the operator has made.
async fn visits(stage: &Stage) -> u64 {
    let metrics = stage.operator.ask("/metrics").await;
    let name = r#"millrace_operator_visits_total{kind="BatchJob",outcome="done"} "#;
    let count = metrics.lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_applied_again_changes_nothing() {
    const NAMESPACE: &str = "applied";
    let Some(stage) = Stage::new(NAMESPACE).await else {
        return;
    };
    let api = control_plane().expect("the stage has it");
    let (service, job) = (
        tenant::service(SERVICE, json!({})),
        tenant::job(JOB, SERVICE, json!({})),
    );
    let manifests = json!({"apiVersion": "v1", "kind": "List", "items": [service, job]});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("manifests.json");
    std::fs::write(&file, manifests.to_string()).unwrap();
    let apply = |manager: &str| {
        let manager = format!("--field-manager={manager}");
        let file = file.to_str().unwrap();
        api.kubectl(&[
            "apply",
            "--server-side",
            &manager,
            "-n",
            NAMESPACE,
            "-f",
            file,
        ]);
    };
    apply("gitops");
    stage.expect_completed(JOB).await;
    let asleep = stage.tenant.wait_for_readiness(SERVICE, "Asleep");
    stage.expect("the end of the work", asleep).await;
    stage.quiet().await;
    let painter = Painter::new(stage.tenant.client.clone(), &stage.redis.url()).await;
    let before = painter.versions(NAMESPACE).await;
    apply("gitops");
    assert_eq!(painter.versions(NAMESPACE).await, before);

    // Somebody else's name is noted on what is applied, which makes a visit, and nothing else.
    let (seen, written) = (visits(&stage).await, stage.operator.proxy.requests());
    apply("somebody-else");
    let visited = async {
        while visits(&stage).await == seen {
            tokio::time::sleep(PAUSE).await;
        }
    };
    stage.expect("a visit", visited).await;
    let noted = painter.versions(NAMESPACE).await;
    for (name, version) in &before {
        let is_applied = name.starts_with("BatchJob/") || name.starts_with("InferenceService/");
        assert_eq!(noted[name] != *version, is_applied, "{name}");
    }
    apply("somebody-else");
    assert_eq!(painter.versions(NAMESPACE).await, noted);
    assert_eq!(stage.operator.proxy.requests(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_course_of_a_job_is_told_by_events() {
    let Some(stage) = Stage::new("events").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    // What passes within a second is not told: finish waits for this Secret.
    let receiver = json!({"url": "https://example.com/hook", "secretRef": {"name": "hook"}});
    let told = json!({"notify": receiver});
    tenant.create_job(JOB, SERVICE, told).await;
    let reached = async |reason: &str| {
        stage
            .expect(reason, tenant.wait_for_reason(JOB, reason))
            .await;
    };
    reached("Running").await;
    let serving = tenant.wait_for_readiness(SERVICE, "Serving");
    stage.expect("its pods", serving).await;
    tenant.suspend(JOB, true).await;
    reached("Suspended").await;
    tenant.world.go_on();
    tenant.suspend(JOB, false).await;
    reached("Finishing").await;
    tenant.create_secret("hook").await;
    reached("Completed").await;
    let input = json!({"input": {"uris": ["file:///rows.jsonl"]}});
    tenant.create_job("refused", SERVICE, input).await;
    let source = json!({"uri": "hf://acme/minilm"});
    let models = json!([{"name": "minilm", "task": "Embedding", "source": source}]);
    tenant
        .create_service("refused", json!({"models": models}))
        .await;
    let events: Api<Event> = Api::namespaced(tenant.client.clone(), "events");
    // Of an object, by the time at which each was said first: kind and reason.
    let told = async |kind: &str, name: &str| {
        let mut events = events.list(&ListParams::default()).await.unwrap().items;
        events.sort_by_key(|event| event.event_time.clone());
        let is_of_object = |event: &Event| {
            let object = event.regarding.clone().unwrap_or_default();
            object.kind.as_deref() == Some(kind) && object.name.as_deref() == Some(name)
        };
        let of_object = events.into_iter().filter(is_of_object);
        of_object
            .map(|event| {
                [event.type_, event.reason]
                    .map(Option::unwrap_or_default)
                    .join(" ")
            })
            .collect::<Vec<String>>()
    };
    let all_told = async |kind: &str, name: &str, expected: &[&str]| {
        loop {
            let mut told = told(kind, name).await.into_iter();
            if expected.iter().all(|it| told.any(|told| told == *it)) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let course = [
        "Normal Planning",
        "Normal Running",
        "Normal Suspended",
        "Normal Finishing",
        "Normal Completed",
    ];
    let of_job = all_told("BatchJob", JOB, &course);
    stage.expect("the course", of_job).await;
    let refused = all_told("BatchJob", "refused", &["Warning LocalPath"]);
    stage.expect("the refusal", refused).await;
    // It has been asleep before as well, which is told of it once.
    for course in [
        &["Normal Scaling", "Normal Serving"][..],
        &["Normal Asleep"],
    ] {
        let of_service = all_told("InferenceService", SERVICE, course);
        stage.expect("the course of the service", of_service).await;
    }
    let refused = ["Warning SourceNotSupported"];
    let refused = all_told("InferenceService", "refused", &refused);
    stage.expect("the refusal of the service", refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_with_the_higher_priority_is_worked_off_first() {
    let Some(stage) = Stage::new("priorities").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.world.pause_after(0);
    tenant.create_service(SERVICE, json!({})).await;
    let of_priority = |priority: i32, output: &str| json!({"priority": priority, "output": {"uri": format!("s3://bucket/{output}")}});
    // By name and by age the other would be first.
    tenant
        .create_job("early", SERVICE, of_priority(1, "early"))
        .await;
    tenant
        .create_job("urgent", SERVICE, of_priority(5, "urgent"))
        .await;
    let redis = RedisOptions::new(stage.redis.url());
    let registry = JobRegistry::new(&redis, "priorities", SERVICE).unwrap();
    let both = async {
        loop {
            let told = registry.list().await.unwrap();
            let told: Vec<_> = told
                .iter()
                .map(|(name, job)| (name.as_str(), job.priority))
                .collect();
            if told == [("early", 1), ("urgent", 5)] {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    stage.expect("both jobs at work", both).await;
    let shards = SHARDS as usize;
    tenant.world.pause_after(shards);
    let commits = tenant.wait_for_commits(shards);
    stage.expect("the first commits", commits).await;
    let commits_of = async |name| {
        let job = tenant.jobs().get(name).await.unwrap();
        tenant.world.commits_of(&job.metadata.uid.unwrap())
    };
    assert_eq!(
        (commits_of("early").await, commits_of("urgent").await),
        (0, shards)
    );
    tenant.world.go_on();
    for name in ["urgent", "early"] {
        let completed = tenant.wait_for_reason(name, "Completed");
        stage.expect("the end of the job", completed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_after_a_rest_in_which_its_service_was_changed() {
    let Some(stage) = Stage::new("changed-at-rest").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.world.pause_after(1);
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect("a commit", tenant.wait_for_commits(1)).await;
    tenant.suspend(JOB, true).await;
    let rests = tenant.wait_for_reason(JOB, "Suspended");
    stage.expect("its rest", rests).await;
    let moved = tenant.move_pods(SERVICE, "fast");
    stage.expect("the other pods", moved).await;
    tenant.world.go_on();
    tenant.suspend(JOB, false).await;
    stage.expect_completed(JOB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_somebody_else_counts_stay_as_many() {
    let Some(stage) = Stage::new("external").await else {
        return;
    };
    let tenant = &stage.tenant;
    let external = json!({"autoscaling": {"mode": "External"}});
    tenant.create_service(SERVICE, external).await;
    let (deployments, name) = (tenant.deployments(), deployment_of(SERVICE));
    let made = await_condition(deployments.clone(), &name, |it: Option<&_>| it.is_some());
    stage.expect("the Deployment", made).await.unwrap();
    let scaled: Patch<Value> = Patch::Merge(json!({"spec": {"replicas": 3}}));
    let autoscaler = PatchParams {
        field_manager: Some("autoscaler".to_owned()),
        ..PatchParams::default()
    };
    let patched = deployments.patch_scale(&name, &autoscaler, &scaled).await;
    patched.unwrap();
    let serving = async {
        while tenant.wait_for_readiness(SERVICE, "Serving").await != "3 pods serve" {
            tokio::time::sleep(PAUSE).await;
        }
    };
    stage.expect("three pods", serving).await;
    // A job comes and goes, and the Deployment is written anew.
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect_completed(JOB).await;
    let moved = tenant.move_pods(SERVICE, "fast");
    stage.expect("the other pods", moved).await;
    let deployment = deployments.get(&name).await.unwrap();
    assert_eq!(deployment.spec.replicas, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_stay_as_many_when_somebody_else_is_to_count_them_and_one_where_none_is_awake() {
    let Some(stage) = Stage::new("handed-over").await else {
        return;
    };
    let tenant = &stage.tenant;
    let counted_by = |mode: &str, least: u32| {
        json!({"autoscaling": {
            "mode": mode, "minReplicas": least, "maxReplicas": 5, "idleSeconds": 1,
        }})
    };
    tenant
        .create_service(SERVICE, counted_by("Backlog", 3))
        .await;
    let (deployments, name) = (tenant.deployments(), deployment_of(SERVICE));
    let counted = async |is_ours: bool, replicas: i32| {
        let is_so = move |deployment: Option<&Deployment>| {
            deployment.is_some_and(|it| {
                is_ours == counts_pods(it, OPERATOR) && it.spec.replicas == Some(replicas)
            })
        };
        let told = await_condition(deployments.clone(), &name, is_so);
        stage.expect("so many pods", told).await.unwrap();
    };
    counted(true, 3).await;
    tenant
        .change_service(SERVICE, counted_by("External", 3))
        .await;
    counted(false, 3).await;
    let scaled: Patch<Value> = Patch::Merge(json!({"spec": {"replicas": 2}}));
    let autoscaler = PatchParams::default();
    let patched = deployments.patch_scale(&name, &autoscaler, &scaled).await;
    patched.unwrap();
    let moved = tenant.move_pods(SERVICE, "fast");
    stage.expect("the other pods", moved).await;
    counted(false, 2).await;
    tenant
        .change_service(SERVICE, counted_by("Backlog", 3))
        .await;
    counted(true, 3).await;
    tenant
        .change_service(SERVICE, counted_by("Backlog", 0))
        .await;
    counted(true, 0).await;
    tenant
        .change_service(SERVICE, counted_by("External", 0))
        .await;
    counted(false, 1).await;
}

/// Whether this manager applies the number of pods.
fn counts_pods(deployment: &Deployment, manager: &str) -> bool {
    let mut entries = deployment.metadata.managed_fields.iter().flatten();
    entries.any(|entry| {
        let fields = entry.fields_v1.as_ref();
        let replicas = fields.and_then(|fields| fields.0.pointer("/f:spec/f:replicas"));
        entry.manager.as_deref() == Some(manager) && replicas.is_some()
    })
}
