//! The pod that serves the results of a job over HTTP, and how it is reached.
//!
//! It reads the output with the job's own credentials, in the job's namespace; the operator reads none of
//! it. Its fate is nothing to the job.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::runtime::events::EventType;
use millrace_crds::batch_job::Reader;
use millrace_crds::{BatchJob, InferenceService, SecretKeyRef};
use serde_json::json;

use super::build::{self, metadata};
use crate::apply::object;
use crate::config::Options;
use crate::context::Context;
use crate::names::{JOB_LABEL, child, labels};
use crate::pods;
use crate::visit::VisitError;

/// What its objects and its step are called.
const READER: &str = "reader";

/// Where it listens.
const PORT: u16 = 8083;

/// Key of the token in its Secret, where the job names none.
const TOKEN_KEY: &str = "token";

/// What a reader consists of.
#[derive(Debug, PartialEq)]
struct Objects {
    deployment: Deployment,
    service: Service,
    network_policy: NetworkPolicy,
}

/// Keeps the reader that the job asks for. One that the API server will not have is said, and stops nothing.
pub async fn keep(
    ctx: &Context,
    job: &BatchJob,
    service: Option<&InferenceService>,
) -> Result<(), VisitError> {
    let Some(reader) = &job.spec.reader else {
        return Ok(());
    };
    // A path of one machine would be one of the reader's own pod.
    if !job.local_paths().is_empty() {
        return Ok(());
    }
    let namespace = job.namespace().unwrap_or_default();
    let Objects {
        deployment,
        service,
        network_policy,
    } = objects(job, reader, service, &ctx.options);
    let made = async {
        // Nobody reaches it before it is guarded.
        let (client, children) = (&ctx.client, &ctx.children);
        children.apply(client, &namespace, network_policy).await?;
        children.apply(client, &namespace, service).await?;
        children.apply(client, &namespace, deployment).await
    };
    match made.await.map_err(VisitError::Apply) {
        Err(ref error) if let Some(why) = error.rejection() => {
            let note = format!("spec.reader: the pod cannot be made: {why}");
            ctx.say(job, EventType::Warning, "ReaderRejected", &note)
                .await;
        }
        made => drop(made?),
    }
    Ok(())
}

/// The objects of a reader; its pod runs as and where the job's other pods do. Pure.
fn objects(
    job: &BatchJob,
    reader: &Reader,
    service: Option<&InferenceService>,
    options: &Options,
) -> Objects {
    let Reader {
        secret_ref: SecretKeyRef { name: secret, key },
    } = reader;
    let template = build::service_template(job, service);
    let key = key.as_deref().unwrap_or(TOKEN_KEY);
    let name = child(&job.name_any(), READER);
    let selector = labels(READER, JOB_LABEL, &job.name_any());
    let mut variables = pods::store_variables(options);
    variables.extend([
        json!({"name": "MILLRACE_JOB", "value": job.name_any()}),
        json!({"name": "MILLRACE_OUTPUT", "value": job.spec.output.uri}),
        json!({"name": "MILLRACE_READ_LISTEN", "value": format!("0.0.0.0:{PORT}")}),
        json!({"name": "MILLRACE_READ_TOKEN_FILE", "value": format!("/var/run/millrace/token/{key}")}),
    ]);
    let token = json!({"name": "reader-token", "secret": {
        "secretName": secret, "items": [{"key": key, "path": key}],
    }});
    let at =
        json!({"name": "reader-token", "mountPath": "/var/run/millrace/token", "readOnly": true});
    let (mut volumes, mut mounts) = (vec![token], vec![at]);
    if let Some(credentials) = &job.spec.credentials {
        let (volume, mount) = pods::credentials(&credentials.name);
        let folder = format!("{}/{}", pods::SECRETS, credentials.name);
        variables.push(json!({"name": "MILLRACE_CREDENTIALS", "value": folder}));
        volumes.push(volume);
        mounts.push(mount);
    }
    let container = json!({
        "name": READER,
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": ["read"],
        "env": variables,
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(job, &name, READER),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector},
            "template": build::pod_template(job, READER, &template, &container, &volumes),
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, &name, READER),
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    });
    let network_policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, &name, READER),
        "spec": {
            "podSelector": {"matchLabels": selector},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": PORT}]}],
        },
    });
    Objects {
        deployment: object(deployment),
        service: object(service),
        network_policy: object(network_policy),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_reader_is_the_jobs_own_and_mounts_the_token_and_the_credentials_alone() {
        let job: BatchJob = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "embed", "namespace": "tenant", "uid": "u"},
            "spec": {
                "serviceRef": {"name": "minilm"}, "input": {"uris": ["s3://bucket/in"]},
                "output": {"uri": "s3://bucket/out"}, "credentials": {"name": "bucket"},
                "reader": {"secretRef": {"name": "readers", "key": "embed"}},
            },
        }))
        .unwrap();
        let service = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "minilm"},
            "spec": {"models": [], "template": {
                "serviceAccountName": "tenant-account",
                "imagePullSecrets": [{"name": "registry"}],
                "nodeSelector": {"pool": "cpu"},
                "tolerations": [{"key": "batch"}],
                "podLabels": {"team": "search"},
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
            }},
        }));
        let options = Options::parse_from([
            "operator",
            "--worker-image=w",
            "--server-image=s",
            "--redis-url=redis://redis",
        ]);
        let reader = job.spec.reader.as_ref().unwrap();
        let Objects {
            deployment,
            service,
            network_policy,
        } = objects(&job, reader, Some(&service.unwrap()), &options);
        let (deployment, service) = (json!(deployment), json!(service));
        let owner = &deployment["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"]),
            (&json!("BatchJob"), &json!("u"))
        );
        let template = &deployment["spec"]["template"];
        let mut labels = json!(labels(READER, JOB_LABEL, "embed"));
        assert_eq!(service["spec"]["selector"], labels);
        assert_eq!(deployment["spec"]["selector"]["matchLabels"], labels);
        let guarded = json!(network_policy);
        assert_eq!(guarded["spec"]["podSelector"]["matchLabels"], labels);
        labels["team"] = json!("search");
        assert_eq!(template["metadata"]["labels"], labels);
        let pod = &template["spec"];
        assert_eq!(pod.get("restartPolicy"), None, "it runs on");
        assert_eq!(pod["serviceAccountName"], "tenant-account");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!(pod["nodeSelector"], json!({"pool": "cpu"}));
        assert_eq!(pod["tolerations"][0]["key"], "batch");
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"], pods::pod_security());
        let container = &pod["containers"][0];
        let limits = json!({"memory": "256Mi"});
        assert_eq!(container["resources"]["limits"], limits, "and no GPU");
        assert_eq!(container["securityContext"], pods::container_security());
        let secrets = pod["volumes"].as_array().unwrap().iter();
        let secrets: Vec<_> = secrets.map(|it| &it["secret"]["secretName"]).collect();
        assert_eq!(secrets, ["readers", "bucket"]);
        let variables = container["env"].as_array().unwrap();
        let file = variables
            .iter()
            .find(|it| it["name"] == "MILLRACE_READ_TOKEN_FILE");
        assert_eq!(file.unwrap()["value"], "/var/run/millrace/token/embed");
    }
}
