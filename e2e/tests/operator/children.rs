//! What the operator made stays as it made it, whoever else lays hands on it.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Resource, ResourceExt};
use millrace_crds::names::JOB_LABEL;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::jobs::Stage;
use crate::tenant::{JOB, SERVICE};

/// Name of the service's Deployment and Service.
const CHILD: &str = "minilm-inference";

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changed_or_took_away_is_as_it_was() {
    let Some(stage) = Stage::new("children").await else {
        return;
    };
    let tenant = &stage.tenant;
    let awake = json!({"autoscaling": {"minReplicas": 1, "maxReplicas": 2}});
    tenant.create_service(SERVICE, awake).await;
    let serving = tenant.wait_for_readiness(SERVICE, "Serving");
    stage.expect("the service", serving).await;

    let deployments: Api<Deployment> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let scaled = Patch::Merge(json!({"spec": {"replicas": 7}}));
    let params = PatchParams::default();
    deployments.patch(CHILD, &params, &scaled).await.unwrap();
    let replicas = |deployment: Option<&Deployment>| deployment?.spec.replicas;
    let as_before = await_condition(deployments, CHILD, move |it: Option<&Deployment>| {
        replicas(it) == Some(1)
    });
    stage.expect("one pod", as_before).await.unwrap();

    let config_maps: Api<ConfigMap> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let name = "minilm-service";
    let emptied = Patch::Merge(json!({"data": null}));
    config_maps.patch(name, &params, &emptied).await.unwrap();
    let filled = await_condition(config_maps, name, |it: Option<&ConfigMap>| {
        it.is_some_and(|it| it.data.is_some())
    });
    stage.expect("the manifest", filled).await.unwrap();

    let services: Api<Service> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let gone = DeleteParams::default();
    services.delete(CHILD, &gone).await.unwrap();
    let back = await_condition(services, CHILD, |it: Option<&Service>| it.is_some());
    stage.expect("the Service", back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_somebody_deleted_is_back_once_a_pod_waits_for_it() {
    let Some(stage) = Stage::new("lost-secret").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.create_service(SERVICE, json!({})).await;
    let asleep = tenant.wait_for_readiness(SERVICE, "Asleep");
    stage.expect("the service", asleep).await;
    let secrets: Api<Secret> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let gone = DeleteParams::default();
    secrets.delete("minilm-leases", &gone).await.unwrap();
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect_completed(JOB).await;
    let written = "PATCH secrets/minilm-leases";
    assert_eq!(stage.operator.proxy.instants(written).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_guards_a_jobs_steps_and_what_reads_its_results_is_back_when_somebody_deleted_it() {
    let Some(stage) = Stage::new("job-children").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.create_service(SERVICE, json!({})).await;
    // The Secret of the receiver is not there, so the pod that finishes waits.
    let waiting = json!({
        "notify": {"url": "https://example.com/hook", "secretRef": {"name": "hook"}},
        "reader": {"secretRef": {"name": "readers"}},
    });
    tenant.create_job(JOB, SERVICE, waiting).await;
    let finishing = tenant.wait_for_reason(JOB, "Finishing");
    stage.expect("a step that waits", finishing).await;
    comes_back::<NetworkPolicy>(&stage, "embed-steps").await;
    tenant.create_secret("hook").await;
    stage.expect_completed(JOB).await;
    comes_back::<Deployment>(&stage, "embed-reader").await;
    comes_back::<Service>(&stage, "embed-reader").await;
    comes_back::<NetworkPolicy>(&stage, "embed-reader").await;
}

/// Deletes an object and waits until another one has its name.
async fn comes_back<K>(stage: &Stage, name: &str)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let tenant = &stage.tenant;
    let api: Api<K> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let there = await_condition(api.clone(), name, |it: Option<&K>| it.is_some());
    let before = stage.expect(name, there).await.unwrap().unwrap().uid();
    api.delete(name, &DeleteParams::default()).await.unwrap();
    let is_another = move |it: Option<&K>| it.is_some_and(|it| it.uid() != before);
    let back = await_condition(api, name, is_another);
    stage.expect(name, back).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ran_again_has_the_children_of_its_last_run_alone() {
    let Some(stage) = Stage::new("rerun").await else {
        return;
    };
    let tenant = &stage.tenant;
    tenant.create_service(SERVICE, json!({})).await;
    tenant.create_job(JOB, SERVICE, json!({})).await;
    stage.expect_completed(JOB).await;
    tenant.change_job(JOB, json!({"rerunFailed": 1})).await;
    let completed = tenant.wait_for_reason(JOB, "Completed");
    stage.expect("the end of the second run", completed).await;
    assert_eq!(tenant.world.manifests(), 2);
    let of_job = ListParams::default().labels(&format!("{JOB_LABEL}={JOB}"));
    let jobs: Api<Job> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let names = jobs.list(&of_job).await.unwrap();
    let names: Vec<_> = names.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["embed-finish-2", "embed-plan-2"]);
    let config_maps: Api<ConfigMap> = Api::namespaced(tenant.client.clone(), &tenant.namespace);
    let names = config_maps.list(&of_job).await.unwrap();
    let names: Vec<_> = names.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["embed-manifests-2"]);
}
