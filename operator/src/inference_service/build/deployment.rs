//! The pods of a service: models are fetched, then the worker stands beside the server, and both
//! talk over a Unix socket.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use millrace_crds::InferenceService;
use millrace_crds::inference_service::{PodTemplate, Toleration};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::config_map::{MODELS, SERVER_KEY, SERVICE_KEY};
use super::{HTTP_PORT, WORKER_PORT, metadata, object, selector};
use crate::config::Options;
use crate::names::{SERVICE_LABEL, child, inference, labels, leases_secret};
use crate::pods;

/// Folder of the socket between worker and server.
const RUN: &str = "/run/millrace";

/// Time for a pod to give back its shards and answer the requests in flight.
const GRACE_SECONDS: u32 = 60;

/// The Deployment with `replicas` pods.
pub fn deployment(service: &InferenceService, replicas: u32, options: &Options) -> Deployment {
    let name = service.name_any();
    let PodTemplate {
        service_account_name,
        node_selector,
        tolerations,
        resources,
    } = &service.spec.template;
    let secrets: Vec<_> = service
        .spec
        .secrets
        .iter()
        .map(|secret| pods::credentials(&secret.name))
        .collect();
    let mounts_of_secrets: Vec<Value> = secrets.iter().map(|(_, mount)| mount.clone()).collect();
    let mut volumes = vec![
        json!({"name": "run", "emptyDir": {}}),
        json!({"name": "models", "emptyDir": {}}),
        json!({"name": "service", "configMap": {"name": child(&name, "service")}}),
    ];
    volumes.extend(secrets.into_iter().map(|(volume, _)| volume));
    let tolerations: Vec<Value> = tolerations.iter().map(toleration).collect();
    let pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "serviceAccountName": service_account_name,
        "nodeSelector": node_selector,
        "tolerations": tolerations,
        "securityContext": pods::pod_security(),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": [
            fetcher(service, options, &mounts_of_secrets),
            worker(service, options, &mounts_of_secrets),
        ],
        "containers": [server(options, &json!(resources))],
        "volumes": volumes,
    });
    // Servers read their manifest once, so other models make other pods.
    let models = Sha256::digest(serde_json::to_vec(&service.spec.models).expect("plain data"));
    let models = data_encoding::HEXLOWER.encode(&models[..16]);
    object(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(service, &inference(&name)),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(service)},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {
                    "labels": labels("inference", SERVICE_LABEL, &name),
                    "annotations": {"millrace.dev/models": models},
                },
                "spec": pod,
            },
        },
    }))
}

/// Brings the models into the pod before anything else starts.
fn fetcher(service: &InferenceService, options: &Options, secrets: &[Value]) -> Value {
    let mut variables = pods::store_variables(options);
    // Sources are read with the first Secret of the service, or with the pod's own identity.
    if let Some(secret) = service.spec.secrets.first() {
        let folder = format!("{}/{}", pods::SECRETS, secret.name);
        variables.push(json!({"name": "MILLRACE_CREDENTIALS", "value": folder}));
    }
    let mut mounts = vec![
        json!({"name": "models", "mountPath": MODELS}),
        json!({"name": "service", "mountPath": pods::MANIFESTS, "readOnly": true}),
    ];
    mounts.extend_from_slice(secrets);
    json!({
        "name": "models",
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": ["models", "-f", format!("{}/{SERVICE_KEY}", pods::MANIFESTS), "--to", MODELS],
        "env": variables,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    })
}

/// The worker, as a native sidecar: it starts before the server and ends after it.
fn worker(service: &InferenceService, options: &Options, secrets: &[Value]) -> Value {
    let leases = leases_secret(&service.name_any());
    let mut variables = pods::lease_variables(options, &leases);
    variables.extend(pods::store_variables(options));
    variables
        .push(json!({"name": "MILLRACE_SERVER_SOCKET", "value": format!("{RUN}/server.sock")}));
    variables.push(json!({"name": "MILLRACE_SERVICE_NAME", "value": service.name_any()}));
    variables.push(json!({"name": "MILLRACE_NAMESPACE", "value": service.namespace()}));
    variables.push(json!({"name": "MILLRACE_SECRETS", "value": pods::SECRETS}));
    let mut mounts = vec![json!({"name": "run", "mountPath": RUN})];
    mounts.extend_from_slice(secrets);
    json!({
        "name": "worker",
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "restartPolicy": "Always",
        "args": ["serve", "--listen", format!("0.0.0.0:{WORKER_PORT}")],
        "env": variables,
        "ports": [{"name": "worker", "containerPort": WORKER_PORT}],
        "startupProbe": {"httpGet": {"path": "/health", "port": WORKER_PORT}, "periodSeconds": 1, "failureThreshold": 60},
        "livenessProbe": {"httpGet": {"path": "/health", "port": WORKER_PORT}, "periodSeconds": 10, "failureThreshold": 6},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    })
}

fn server(options: &Options, resources: &Value) -> Value {
    let drain = json!({"httpGet": {"path": "/drain", "port": WORKER_PORT}});
    json!({
        "name": "server",
        "image": options.server_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": [
            "--service", format!("{}/{SERVER_KEY}", pods::MANIFESTS),
            "--uds", format!("{RUN}/server.sock"),
            "--listen", format!("0.0.0.0:{HTTP_PORT}"),
            "--supervise",
        ],
        "ports": [{"name": "http", "containerPort": HTTP_PORT}],
        "lifecycle": {"preStop": drain},
        "startupProbe": {"httpGet": {"path": "/ready", "port": HTTP_PORT}, "periodSeconds": 1, "failureThreshold": 600},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": HTTP_PORT}, "periodSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/health", "port": HTTP_PORT}, "periodSeconds": 10, "failureThreshold": 6},
        "resources": resources,
        "securityContext": pods::container_security(),
        "volumeMounts": [
            {"name": "run", "mountPath": RUN},
            {"name": "models", "mountPath": MODELS, "readOnly": true},
            {"name": "service", "mountPath": pods::MANIFESTS, "readOnly": true},
        ],
    })
}

fn toleration(toleration: &Toleration) -> Value {
    let Toleration { key, value, effect } = toleration;
    let operator = if value.is_some() { "Equal" } else { "Exists" };
    json!({"key": key, "operator": operator, "value": value, "effect": effect})
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn made() -> Value {
        let service = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "tenant", "uid": "u"},
            "spec": {
                "models": [{"name": "m", "task": "Embedding", "source": {"uri": "s3://bucket/m"}}],
                "secrets": [{"name": "store"}],
                "template": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
            },
        }));
        let options = Options::parse_from([
            "operator",
            "--worker-image=w",
            "--server-image=s",
            "--redis-url=redis://redis",
        ]);
        json!(deployment(&service.unwrap(), 2, &options))
    }

    #[test]
    fn pods_pass_the_restricted_standard_and_hold_no_token() {
        let pod = &made()["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let containers = [
            &pod["initContainers"][0],
            &pod["initContainers"][1],
            &pod["containers"][0],
        ];
        for container in containers {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        }
    }

    #[test]
    fn the_worker_is_a_sidecar_that_is_drained_before_the_server_ends() {
        let pod = &made()["spec"]["template"]["spec"];
        assert_eq!(pod["initContainers"][1]["restartPolicy"], "Always");
        let hook = &pod["containers"][0]["lifecycle"]["preStop"]["httpGet"];
        assert_eq!(hook["path"], "/drain");
        assert_eq!(
            pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
            "1"
        );
    }
}
