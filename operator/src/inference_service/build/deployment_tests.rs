//! What the pods of a service are made of.
use millrace_crds::InferenceService;
use serde_json::{Value, json};

use super::config_map::SERVER_KEY;
use super::{WORKER_PORT, deployment};
use crate::config::Options;
use crate::pods;

fn options() -> Options {
    Options::of_tests(&["--redis-url=redis://redis"])
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
        "podLabels": {"team": "search", "app.kubernetes.io/name": "mine"},
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
        "topologySpreadConstraints": [{"topologyKey": "topology.kubernetes.io/zone"}],
        "workerResources": {"limits": {"memory": "2Gi"}},
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
    let limits = |index: usize| pod["initContainers"][index]["resources"].clone();
    assert_eq!(
        limits(1),
        json!({"limits": {"memory": "2Gi"}}),
        "the worker's"
    );
    assert_eq!(
        limits(0)["limits"]["memory"],
        "512Mi",
        "the fetcher's usual"
    );
    let spread = json!([{
        "topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": made["spec"]["selector"],
    }]);
    assert_eq!(pod["topologySpreadConstraints"], spread);
    let metadata = &made["spec"]["template"]["metadata"];
    assert_eq!(metadata["labels"]["team"], "search");
    assert_eq!(metadata["labels"]["app.kubernetes.io/name"], "millrace");
    assert_eq!(metadata["annotations"]["sidecar.istio.io/inject"], "false");
    assert!(metadata["annotations"]["millrace.dev/models"].is_string());
}

#[test]
fn pods_get_the_slice_of_a_gpu_that_they_ask_for_on_the_nodes_that_have_it() {
    let model = json!({"name": "m", "task": "Embedding", "source": {"uri": "s3://bucket/m"}});
    let mut given = json!(service(("models", json!([model]))));
    let slice = json!({"limits": {"nvidia.com/mig-1g.10gb": "1"}});
    let pool = json!({"nvidia.com/mig.config": "all-1g.10gb"});
    given["spec"]["template"] = json!({
        "resources": slice, "nodeSelector": pool,
        "tolerations": [
            {"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "pool", "value": "batch"},
        ],
    });
    let made = deployed(&serde_json::from_value(given).unwrap());
    let pod = &made["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["resources"], slice);
    assert_eq!(pod["nodeSelector"], pool);
    let tolerations = json!([
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "pool", "operator": "Equal", "value": "batch"},
    ]);
    assert_eq!(pod["tolerations"], tolerations);
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
    let served = json!(super::config_map(&given))["data"][SERVER_KEY].to_string();
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
    let expected = json!({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"});
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
    let made = json!(super::kube_service(&service));
    assert_eq!(made["spec"]["ports"][0]["targetPort"], 3000);
    let policy = json!(super::network_policy(&service, &options()));
    let open = &policy["spec"]["ingress"][0]["ports"];
    assert_eq!(open[0]["port"], 3000);
}
