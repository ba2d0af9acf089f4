//! The objects of a job. Pure.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::core::Resource;
use millrace_crds::{API_VERSION, BatchJob, InferenceService};
use serde_json::{Value, json};

use super::decide::MadeStep;
use crate::config::Options;
use crate::names::{JOB_LABEL, child, label_value, labels, leases_secret};
use crate::pods;

/// Key of the manifests in their ConfigMap.
const MANIFESTS_KEY: &str = "manifests.yaml";

/// How often the pod of a step is tried again.
const STEP_TRIES: u32 = 3;

/// The job and its service as pods and workers get them: what a person wrote, and the job's id.
pub fn manifests(job: &BatchJob, service: &InferenceService) -> String {
    let job = json!({
        "apiVersion": API_VERSION,
        "kind": "BatchJob",
        "metadata": {"name": job.name_any(), "namespace": job.namespace(), "uid": job.uid()},
        "spec": job.spec,
    });
    let service = json!({
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": service.name_any(), "namespace": service.namespace()},
        "spec": service.spec,
    });
    // JSON documents are YAML documents.
    format!("{job}\n---\n{service}\n")
}

/// The ConfigMap with the manifests.
pub fn config_map(job: &BatchJob, manifests: &str) -> ConfigMap {
    object(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, &child(&job.name_any(), "manifests"), "manifests"),
        "data": {MANIFESTS_KEY: manifests},
    }))
}

/// The Job of a step.
pub fn step(job: &BatchJob, made: &MadeStep, options: &Options) -> Job {
    let MadeStep { step, checked } = made;
    let name = job.name_any();
    let manifest_volume = json!({
        "name": "manifests",
        "configMap": {"name": child(&name, "manifests")},
    });
    let mut volumes = vec![manifest_volume];
    let mut mounts =
        vec![json!({"name": "manifests", "mountPath": pods::MANIFESTS, "readOnly": true})];
    let leases = leases_secret(&checked.service.name_any());
    let mut variables = pods::lease_variables(options, &leases);
    variables.extend(pods::store_variables(options));
    variables.push(json!({"name": "MILLRACE_REPORT", "value": "/dev/termination-log"}));
    if let Some(secret) = &job.spec.credentials {
        let (volume, mount) = pods::credentials(&secret.name);
        volumes.push(volume);
        mounts.push(mount);
        let folder = format!("{}/{}", pods::SECRETS, secret.name);
        variables.push(json!({"name": "MILLRACE_CREDENTIALS", "value": folder}));
    }
    let container = json!({
        "name": "step",
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": [step, "-f", format!("{}/{MANIFESTS_KEY}", pods::MANIFESTS)],
        "env": variables,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    });
    object(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, &child(&name, step), step),
        "spec": {
            "backoffLimit": STEP_TRIES,
            "template": {
                "metadata": {"labels": labels(step, JOB_LABEL, &name)},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "serviceAccountName": checked.service.spec.template.service_account_name,
                    "securityContext": pods::pod_security(),
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    }))
}

fn metadata(job: &BatchJob, name: &str, component: &str) -> Value {
    json!({
        "name": name,
        "namespace": job.namespace(),
        "labels": labels(component, JOB_LABEL, &label_value(&job.name_any())),
        "ownerReferences": [job.controller_owner_ref(&())],
    })
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("what is written here has the shape of its kind")
}
