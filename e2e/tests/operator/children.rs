//! What the operator made stays as it made it, whoever else lays hands on it.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
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
