//! The pods of a service: models are fetched, then the worker stands beside the server, and both
//! talk over a Unix socket. A foreign server brings its own models and is spoken to over HTTP. Where
//! an API elsewhere answers, the worker is all there is.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use millrace_crds::inference_service::{PodTemplate, Toleration};
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
    let PodTemplate {
        service_account_name,
        node_selector,
        tolerations,
        resources: _,
        resource_claims: _,
        volumes: _,
        image_pull_secrets,
        priority_class_name,
        runtime_class_name,
    } = &service.spec.template;
    let secrets = secret::mounted(service);
    let worker = worker(service, options);
    let computes = computes::Given::of(&service.spec.template);
    let requests = requests::Given::of(service, options);
    let (mut volumes, init_containers, containers) = match &service.spec.runtime {
        None if service.spec.remote.is_some() => {
            let worker = remote::alone(worker, &computes);
            (Vec::new(), Vec::new(), vec![worker])
        }
        None => (
            vec![
                json!({"name": "run", "emptyDir": {}}),
                model_cache::volume(service.spec.model_cache.as_ref()),
                json!({"name": "service", "configMap": {"name": child(&name, "service")}}),
            ],
            vec![fetcher(&secrets, options), worker],
            vec![server(options, &computes, &requests)],
        ),
        Some(runtime) => (
            runtime::volumes(),
            vec![worker],
            vec![runtime::server(runtime, &computes)],
        ),
    };
    volumes.extend(
        secrets
            .iter()
            .map(|secret| pods::credentials(&secret.name).0),
    );
    volumes.extend(computes.volumes);
    volumes.extend(requests.volumes);
    let tolerations: Vec<Value> = tolerations.iter().map(toleration).collect();
    let pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "serviceAccountName": service_account_name,
        "nodeSelector": node_selector,
        "tolerations": tolerations,
        "priorityClassName": priority_class_name,
        "runtimeClassName": runtime_class_name,
        "imagePullSecrets": image_pull_secrets,
        "resourceClaims": computes.claims,
        "securityContext": pods::pod_security(),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": init_containers,
        "containers": containers,
        "volumes": volumes,
    });
    // Servers read their manifest once, so other models make other pods.
    let read_once = (
        &service.spec.models,
        &service.spec.cache,
        &service.spec.auth,
    );
    let models = Sha256::digest(serde_json::to_vec(&read_once).expect("plain data"));
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
fn fetcher(secrets: &BTreeSet<SecretRef>, options: &Options) -> Value {
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
    let shared = service.spec.secrets.iter().cloned();
    let secrets: BTreeSet<SecretRef> = shared.chain(remote::secret(service)).collect();
    mounts.extend(
        secrets
            .iter()
            .map(|secret| pods::credentials(&secret.name).1),
    );
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

fn toleration(toleration: &Toleration) -> Value {
    let Toleration { key, value, effect } = toleration;
    let operator = if value.is_some() { "Equal" } else { "Exists" };
    json!({"key": key, "operator": operator, "value": value, "effect": effect})
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn options() -> Options {
        Options::parse_from([
            "operator",
            "--worker-image=w",
            "--server-image=s",
            "--redis-url=redis://redis",
        ])
    }

    fn service(answered_by: (&str, Value)) -> InferenceService {
        let (field, value) = answered_by;
        let mut service = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "tenant", "uid": "u"},
            "spec": {
                "secrets": [{"name": "store"}],
                "template": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
            },
        });
        service["spec"][field] = value;
        serde_json::from_value(service).unwrap()
    }

    fn made() -> Value {
        let model = json!({"name": "m", "task": "Embedding", "source": {"uri": "s3://bucket/m"}});
        deployed(&service(("models", json!([model]))))
    }

    /// A service whose server the user brings.
    fn brought(more: Value) -> InferenceService {
        let mut runtime = json!({
            "image": "ghcr.io/acme/tei:1", "port": 3000, "protocol": "TEI",
            "args": ["--model-id", "BAAI/bge-m3"], "env": [{"name": "A", "value": "b"}],
            "models": [{"name": "bge", "task": "Embedding"}],
        });
        for (key, value) in more.as_object().unwrap() {
            runtime[key] = value.clone();
        }
        service(("runtime", runtime))
    }

    fn deployed(service: &InferenceService) -> Value {
        json!(deployment(service, Some(2), &options()))
    }

    #[test]
    fn pods_pass_the_restricted_standard_and_hold_no_token() {
        for made in [made(), deployed(&brought(json!({})))] {
            assert_restricted(&made["spec"]["template"]["spec"]);
        }
    }

    fn assert_restricted(pod: &Value) {
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let init = pod["initContainers"].as_array().unwrap();
        for container in init.iter().chain(pod["containers"].as_array().unwrap()) {
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

    #[test]
    fn the_container_that_computes_gets_what_the_template_says() {
        let model = json!({"name": "m", "task": "Embedding", "source": {"uri": "s3://bucket/m"}});
        let mut given = json!(service(("models", json!([model]))));
        given["spec"]["template"] = json!({
            "resources": {"limits": {"cpu": "4"}},
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
            "volumes": [{
                "name": "shm", "mountPath": "/dev/shm",
                "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"},
            }],
            "imagePullSecrets": [{"name": "registry"}],
            "priorityClassName": "low", "runtimeClassName": "nvidia",
        });
        let made = deployed(&serde_json::from_value(given).unwrap());
        let pod = &made["spec"]["template"]["spec"];
        let server = &pod["containers"][0];
        assert_eq!(
            server["resources"],
            json!({"limits": {"cpu": "4"}, "claims": [{"name": "gpu"}]})
        );
        let claim = json!([{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]);
        assert_eq!(pod["resourceClaims"], claim);
        let mounted = json!({"name": "template-shm", "mountPath": "/dev/shm", "readOnly": false});
        assert!(
            server["volumeMounts"]
                .as_array()
                .unwrap()
                .contains(&mounted)
        );
        let volume = json!({
            "name": "template-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"},
        });
        assert!(
            pod["volumes"].as_array().unwrap().contains(&volume),
            "{pod}"
        );
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!(pod["priorityClassName"], "low");
        assert_eq!(pod["runtimeClassName"], "nvidia");
    }

    #[test]
    fn a_model_is_read_with_its_own_credentials_and_stays_in_the_cache() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let source = json!({
            "uri": "s3://bucket/m", "digest": digest, "credentials": {"name": "models"},
        });
        let model = json!({"name": "m", "task": "Embedding", "source": source});
        let mut given = json!(service(("models", json!([model]))));
        let claim = json!({"persistentVolumeClaim": {"claimName": "models"}});
        given["spec"]["modelCache"] = claim.clone();
        let given: InferenceService = serde_json::from_value(given).unwrap();
        let made = deployed(&given);
        let pod = &made["spec"]["template"]["spec"];
        let mounted = |container: &Value| {
            let mounts = container["volumeMounts"].as_array().unwrap().iter();
            mounts
                .filter(|mount| {
                    mount["mountPath"]
                        .as_str()
                        .unwrap()
                        .starts_with(pods::SECRETS)
                })
                .count()
        };
        assert_eq!(mounted(&pod["initContainers"][0]), 2, "the fetcher's");
        assert_eq!(mounted(&pod["initContainers"][1]), 1, "the worker's");
        let mut volume = claim;
        volume["name"] = json!("models");
        assert!(
            pod["volumes"].as_array().unwrap().contains(&volume),
            "{pod}"
        );
        let served = json!(super::super::config_map(&given))["data"][SERVER_KEY].to_string();
        let place = format!("file:///models/{}", digest.replace(':', "-"));
        assert!(served.contains(&place), "{served}");
    }

    #[test]
    fn worker_and_server_trace_to_where_the_operator_does() {
        let mut options = options();
        let collector = "http://collector:4318".to_owned();
        options.telemetry = vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), collector)];
        let model = json!({"name": "m", "task": "Embedding", "source": {"uri": "s3://bucket/m"}});
        let service = service(("models", json!([model])));
        let made = json!(deployment(&service, Some(2), &options));
        let pod = &made["spec"]["template"]["spec"];
        let expected =
            json!({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"});
        for container in [&pod["initContainers"][1], &pod["containers"][0]] {
            let variables = container["env"].as_array().unwrap();
            assert!(variables.contains(&expected), "{variables:?}");
        }
    }

    #[test]
    fn a_foreign_server_stands_where_ours_does_and_brings_its_own_models() {
        let made = deployed(&brought(json!({})));
        let pod = &made["spec"]["template"]["spec"];
        let init = pod["initContainers"].as_array().unwrap();
        assert_eq!(init.len(), 1, "no models are fetched");
        assert_eq!(init[0]["restartPolicy"], "Always");
        let variables = init[0]["env"].as_array().unwrap();
        let url = json!({"name": "MILLRACE_SERVER_URL", "value": "http://127.0.0.1:3000"});
        assert!(variables.contains(&url), "{variables:#?}");
        let named = |name| variables.iter().any(|variable| variable["name"] == name);
        assert!(!named("MILLRACE_SERVER_SOCKET"));

        let server = &pod["containers"][0];
        assert_eq!(server["image"], "ghcr.io/acme/tei:1");
        assert_eq!(server["args"], json!(["--model-id", "BAAI/bge-m3"]));
        assert_eq!(server["command"], json!([]), "the image's own");
        assert_eq!(server["ports"][0]["containerPort"], 3000);
        assert_eq!(server["lifecycle"]["preStop"]["httpGet"]["path"], "/drain");
        let drained_at = &server["lifecycle"]["preStop"]["httpGet"]["port"];
        assert_eq!(drained_at, &json!(WORKER_PORT));
        assert_eq!(server["resources"]["limits"]["nvidia.com/gpu"], "1");
    }

    #[test]
    fn a_foreign_server_is_ready_where_its_protocol_or_its_manifest_says() {
        for (more, path) in [
            (json!({}), "/health"),
            (json!({"protocol": "OIP"}), "/v2/health/ready"),
            (json!({"readyPath": "/ping"}), "/ping"),
        ] {
            let made = deployed(&brought(more));
            let server = &made["spec"]["template"]["spec"]["containers"][0];
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                assert_eq!(server[probe]["httpGet"]["path"], path);
                assert_eq!(server[probe]["httpGet"]["port"], 3000);
            }
        }
    }

    #[test]
    fn a_foreign_server_can_write_to_its_home_and_to_tmp_alone() {
        let made = deployed(&brought(json!({})));
        let pod = &made["spec"]["template"]["spec"];
        let server = &pod["containers"][0];
        let home = json!({"name": "HOME", "value": "/home/server"});
        let own = json!({"name": "A", "value": "b"});
        assert_eq!(server["env"], json!([home, own]));
        let places = server["volumeMounts"].as_array().unwrap().iter();
        let places: Vec<_> = places.map(|mount| &mount["mountPath"]).collect();
        assert_eq!(places, ["/tmp", "/home/server"]);
        for mount in server["volumeMounts"].as_array().unwrap() {
            let volume = json!({"name": mount["name"], "emptyDir": {}});
            assert!(pod["volumes"].as_array().unwrap().contains(&volume));
        }
        let env = json!([{"name": "HOME", "value": "/tmp"}]);
        let made = deployed(&brought(json!({"env": env})));
        let server = &made["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(server["env"], env, "the user's own word counts");
    }

    #[test]
    fn requests_reach_a_foreign_server_at_its_own_port() {
        let service = brought(json!({}));
        let made = json!(super::super::kube_service(&service));
        assert_eq!(made["spec"]["ports"][0]["targetPort"], 3000);
        let policy = json!(super::super::network_policy(&service));
        let open = &policy["spec"]["ingress"][0]["ports"];
        assert_eq!(open[0]["port"], 3000);
    }
}
