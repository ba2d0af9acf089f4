//! The pods of a service: models are fetched, then the worker stands beside the server, and both
//! talk over a Unix socket. A foreign server brings its own models and is spoken to over HTTP. Where
//! an API elsewhere answers, the worker is all there is.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use millrace_crds::inference_service::{PodTemplate, TopologySpread};
use millrace_crds::{InferenceService, SecretRef};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::config_map::{MODELS, SERVER_KEY, SERVICE_KEY};
use super::{
    HTTP_PORT, WORKER_PORT, computes, metadata, model_cache, object, remote, requests, runtime,
    secret, selector,
};
use crate::config::Options;
use crate::names::{SERVICE_LABEL, child, inference, labels, leases_secret};
use crate::pods;

/// Folder of the socket between worker and server.
const RUN: &str = "/run/millrace";

/// Time for a pod to give back its shards and answer the requests in flight.
const GRACE_SECONDS: u32 = 60;

/// The Deployment with `replicas` pods, or as many as somebody else says.
pub fn deployment(
    service: &InferenceService,
    replicas: Option<u32>,
    options: &Options,
) -> Deployment {
    let name = service.name_any();
    let template = &service.spec.template;
    let secrets = secret::mounted(service);
    let computes = computes::Given::of(template);
    let requests = requests::Given::of(service, options);
    let Programs {
        mut volumes,
        init_containers,
        containers,
    } = programs(service, &secrets, &computes, &requests, options);
    volumes.extend(
        secrets
            .iter()
            .map(|secret| pods::credentials(&secret.name).0),
    );
    volumes.extend(computes.volumes);
    volumes.extend(requests.volumes);
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
        "topologySpreadConstraints": spread(service),
        "resourceClaims": computes.claims,
        "securityContext": pods::pod_security(),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": init_containers,
        "containers": containers,
        "volumes": volumes,
    });
    pods::place(&mut pod, template);
    let labels = labels("inference", SERVICE_LABEL, &name);
    object(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(service, &inference(&name)),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(service)},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": pods::pod_metadata(template, labels, annotations(service)),
                "spec": pod,
            },
        },
    }))
}

/// What runs in a pod, and the volumes that it needs whatever the service asks for.
struct Programs {
    volumes: Vec<Value>,
    init_containers: Vec<Value>,
    containers: Vec<Value>,
}

/// The worker, and the server beside it if there is one.
fn programs(
    service: &InferenceService,
    secrets: &BTreeSet<SecretRef>,
    computes: &computes::Given,
    requests: &requests::Given,
    options: &Options,
) -> Programs {
    let worker = worker(service, options);
    match &service.spec.runtime {
        None if service.spec.remote.is_some() => Programs {
            volumes: Vec::new(),
            init_containers: Vec::new(),
            containers: vec![remote::alone(worker, computes)],
        },
        None => {
            let config_map = child(&service.name_any(), "service");
            let fetcher = fetcher(&service.spec.template, secrets, options);
            Programs {
                volumes: vec![
                    json!({"name": "run", "emptyDir": {}}),
                    model_cache::volume(service.spec.model_cache.as_ref()),
                    json!({"name": "service", "configMap": {"name": config_map}}),
                ],
                init_containers: vec![fetcher, worker],
                containers: vec![server(options, computes, requests)],
            }
        }
        Some(runtime) => Programs {
            volumes: runtime::volumes(),
            init_containers: vec![worker],
            containers: vec![runtime::server(runtime, computes)],
        },
    }
}

/// Servers read their manifest once, so other models make other pods.
fn annotations(service: &InferenceService) -> BTreeMap<String, String> {
    let read_once = (
        &service.spec.models,
        &service.spec.cache,
        &service.spec.auth,
    );
    let models = Sha256::digest(serde_json::to_vec(&read_once).expect("plain data"));
    let models = data_encoding::HEXLOWER.encode(&models[..16]);
    BTreeMap::from([("millrace.dev/models".to_owned(), models)])
}

/// How the pods spread, each counted with those of the same service.
fn spread(service: &InferenceService) -> Vec<Value> {
    let constraints = service.spec.template.topology_spread_constraints.iter();
    let constraint = |constraint: &TopologySpread| {
        let TopologySpread {
            topology_key,
            max_skew,
            when_unsatisfiable,
        } = constraint;
        json!({
            "topologyKey": topology_key,
            "maxSkew": max_skew,
            "whenUnsatisfiable": when_unsatisfiable,
            "labelSelector": {"matchLabels": selector(service)},
        })
    };
    constraints.map(constraint).collect()
}

/// Brings the models into the pod before anything else starts.
fn fetcher(template: &PodTemplate, secrets: &BTreeSet<SecretRef>, options: &Options) -> Value {
    let mut variables = pods::store_variables(options);
    variables.push(json!({"name": "MILLRACE_SECRETS", "value": pods::SECRETS}));
    let mut mounts = vec![
        json!({"name": "models", "mountPath": MODELS}),
        json!({"name": "service", "mountPath": pods::MANIFESTS, "readOnly": true}),
    ];
    mounts.extend(
        secrets
            .iter()
            .map(|secret| pods::credentials(&secret.name).1),
    );
    let usual = json!({
        "requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"},
    });
    json!({
        "name": "models",
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": ["models", "-f", format!("{}/{SERVICE_KEY}", pods::MANIFESTS), "--to", MODELS],
        "env": variables,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": pods::resources(&template.models_resources, usual),
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    })
}

/// The worker, as a native sidecar: it starts before the server and ends after it.
fn worker(service: &InferenceService, options: &Options) -> Value {
    let leases = leases_secret(&service.name_any());
    let mut variables = pods::lease_variables(options, &leases);
    variables.extend(pods::store_variables(options));
    let mut mounts = Vec::new();
    match &service.spec.runtime {
        None if service.spec.remote.is_some() => {
            variables.push(json!({"name": "MILLRACE_REMOTE", "value": "true"}));
        }
        None => {
            let socket = format!("{RUN}/server.sock");
            variables.push(json!({"name": "MILLRACE_SERVER_SOCKET", "value": socket}));
            mounts.push(json!({"name": "run", "mountPath": RUN}));
        }
        Some(runtime) => {
            let url = format!("http://127.0.0.1:{}", runtime.port);
            variables.push(json!({"name": "MILLRACE_SERVER_URL", "value": url}));
        }
    }
    variables.push(json!({"name": "MILLRACE_SERVICE_NAME", "value": service.name_any()}));
    variables.push(json!({"name": "MILLRACE_NAMESPACE", "value": service.namespace()}));
    variables.push(json!({"name": "MILLRACE_SECRETS", "value": pods::SECRETS}));
    variables.extend(pods::telemetry_variables(options));
    // Of the APIs elsewhere; a server keeps its own.
    variables.extend(requests::cache_variable(service, options));
    let shared = service.spec.secrets.iter().cloned();
    let secrets: BTreeSet<SecretRef> = shared.chain(remote::secret(service)).collect();
    mounts.extend(
        secrets
            .iter()
            .map(|secret| pods::credentials(&secret.name).1),
    );
    let usual = json!({
        "requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"},
    });
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
        "resources": pods::resources(&service.spec.template.worker_resources, usual),
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    })
}

fn server(options: &Options, computes: &computes::Given, requests: &requests::Given) -> Value {
    let drain = json!({"httpGet": {"path": "/drain", "port": WORKER_PORT}});
    let mut mounts = vec![
        json!({"name": "run", "mountPath": RUN}),
        json!({"name": "models", "mountPath": MODELS, "readOnly": true}),
        json!({"name": "service", "mountPath": pods::MANIFESTS, "readOnly": true}),
    ];
    mounts.extend_from_slice(&computes.mounts);
    mounts.extend_from_slice(&requests.mounts);
    let mut variables = pods::telemetry_variables(options);
    variables.extend_from_slice(&requests.variables);
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
        "env": variables,
        "ports": [{"name": "http", "containerPort": HTTP_PORT}],
        "lifecycle": {"preStop": drain},
        "startupProbe": {"httpGet": {"path": "/ready", "port": HTTP_PORT}, "periodSeconds": 1, "failureThreshold": 600},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": HTTP_PORT}, "periodSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/health", "port": HTTP_PORT}, "periodSeconds": 10, "failureThreshold": 6},
        "resources": computes.resources,
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    })
}
