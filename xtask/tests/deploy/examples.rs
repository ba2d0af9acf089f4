//! The examples for clusters are objects that an API server would take.

use std::path::Path;
use std::process::Command;

use millrace_crds::inference_service::ModelSpec;
use millrace_crds::manifest::{Kind, Manifest, documents_of_str, read_path, read_str};
use millrace_e2e::files::copy;
use serde_json::Value;

use crate::files;
use crate::metrics::OPERATOR;
use crate::programs::of_kubernetes;

fn kinds(manifests: &[Manifest]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = manifests.iter().map(Manifest::kind).collect();
    kinds.sort();
    kinds
}

/// What `kubectl kustomize` prints of a folder; nothing without the servers of Kubernetes.
fn built(folder: &Path) -> Option<String> {
    let output = Command::new(of_kubernetes("kubectl")?)
        .arg("kustomize")
        .arg(folder)
        .output()
        .expect("kubectl runs");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {problem}", folder.display());
    Some(String::from_utf8(output.stdout).expect("kubectl prints UTF-8"))
}

/// All strings of a value.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(strings).collect(),
        Value::Object(fields) => fields.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn each_of_the_five_systems_runs_on_a_laptop_and_applies_to_a_cluster() {
    for system in [
        "analysis",
        "symptoms",
        "transcripts",
        "sentiment-to-postgres",
        "comments",
    ] {
        let folder = files::path("examples").join(system);
        let both = [Kind::BatchJob, Kind::InferenceService];
        let local = read_path(&folder).expect("valid manifests");
        assert_eq!(kinds(&local), both, "{system}");
        let Some(text) = built(&folder) else {
            continue;
        };
        let documents = documents_of_str(system, &text).expect("valid manifests");
        let manifests: Vec<Manifest> = (documents.ours.iter())
            .map(|it| it.manifest.clone())
            .collect();
        let Ok([Manifest::BatchJob(job), Manifest::InferenceService(service)]) =
            <[Manifest; 2]>::try_from(manifests)
        else {
            panic!("{system} has a job and a service");
        };
        // Nothing is left of this machine: no folder of it, no server on it, no stand-in.
        let source = |model: &ModelSpec| model.source.uri.clone();
        let mut places: Vec<String> = service.spec.models.iter().map(source).collect();
        places.extend(job.spec.input.uris.clone().expect("files"));
        places.push(job.spec.output.uri.clone());
        for place in places {
            assert!(place.starts_with("s3://bucket/"), "{system}: {place}");
        }
        let written = documents.ours.iter().map(|it| &it.written);
        for text in written.flat_map(strings) {
            assert!(!text.contains("127.0.0.1"), "{system}: {text}");
        }
        // What the job reads with, its service's pods hold.
        let credentials = job.spec.credentials.as_ref().expect("credentials");
        let secrets = service.spec.secrets.iter();
        assert!(secrets.into_iter().any(|it| it.name == credentials.name));
        assert_eq!(
            job.spec.service_ref.as_ref().map(|it| &it.name),
            service.metadata.name.as_ref()
        );
    }
}

#[test]
fn the_example_for_a_cluster_applies_as_it_is() {
    let manifests = read_path(&files::path("examples/cluster")).expect("valid manifests");
    assert_eq!(kinds(&manifests), [Kind::BatchJob, Kind::InferenceService]);
}

#[test]
fn what_scales_a_service_from_outside_names_its_deployment_and_what_the_operator_tells() {
    let service = files::path("examples/autoscaling/service.yaml");
    let service = read_path(&service).expect("a valid manifest");
    assert_eq!(kinds(&service), [Kind::InferenceService]);
    let name = service[0].name();
    let read = |file: &str| files::yaml(&format!("examples/autoscaling/{file}"));
    let (hpa, keda) = (read("hpa.yaml"), read("keda.yaml"));
    for scaler in [&hpa, &keda] {
        let target = &scaler["spec"]["scaleTargetRef"];
        assert_eq!(target["kind"], "Deployment");
        assert_eq!(target["name"], format!("{name}-inference"));
    }
    let metric = &hpa["spec"]["metrics"][0]["external"]["metric"];
    assert_eq!(metric["selector"]["matchLabels"]["service"], name);
    let metric = metric["name"].as_str().expect("a metric");
    assert!(OPERATOR.contains(&metric), "{metric}");
    let rule = &read("prometheus-adapter.yaml")["rules"]["external"][0];
    assert_eq!(rule["name"]["as"], metric);
    assert!(rule["seriesQuery"].as_str().unwrap().starts_with(metric));
    let url = &keda["spec"]["triggers"][0]["metadata"]["url"];
    let (address, path) = url.as_str().unwrap().split_once("/v1/").unwrap();
    assert_eq!(address, "http://millrace-operator.millrace-system.svc:8080");
    let expected = format!("namespaces/default/inferenceservices/{name}/backlog");
    assert_eq!(path, expected, "the operator's own path");
}

#[test]
fn the_environments_of_the_example_repository_build() {
    for environment in ["staging", "production"] {
        let overlay = files::path("examples/gitops/overlays").join(environment);
        let Some(text) = built(&overlay) else {
            return;
        };
        let manifests = read_str(environment, &text).expect("valid manifests");
        assert!(kinds(&manifests).contains(&Kind::BatchJob), "{environment}");
        for manifest in &manifests {
            let namespace = match manifest {
                Manifest::BatchJob(job) => &job.metadata.namespace,
                Manifest::InferenceService(service) => &service.metadata.namespace,
            };
            assert_eq!(
                namespace.as_deref(),
                Some(environment),
                "{}",
                manifest.name()
            );
        }
    }
}

#[test]
fn flux_and_argo_cd_learn_the_health_of_both_kinds_from_their_folders() {
    let Some(flux) = built(&files::path("examples/gitops/flux")) else {
        return;
    };
    assert_eq!(flux.matches("healthCheckExprs:").count(), 2, "{flux}");

    // As beside Argo CD's own manifests, which hold the ConfigMap that is added to.
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(
        folder.join("argocd-cm.yaml"),
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: argocd-cm}, data: {url: https://argo}}",
    )
    .unwrap();
    copy(&files::path("gitops/argocd"), &folder.join("health"));
    std::fs::write(
        folder.join("kustomization.yaml"),
        "{resources: [argocd-cm.yaml], components: [health]}",
    )
    .unwrap();
    let argo = built(folder).expect("kubectl is there");
    for kind in ["BatchJob", "InferenceService"] {
        let key = format!("resource.customizations.health.millrace.dev_{kind}: |");
        assert!(argo.contains(&key), "{argo}");
    }
}

#[test]
fn the_reader_of_the_example_is_restricted_and_takes_what_the_worker_takes() {
    let text = files::text("examples/reader/reader.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let of_kind = |kind: &str| {
        let found = objects.iter().find(|it| it["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {kind}"))
    };
    let template = &of_kind("Deployment")["spec"]["template"];
    let (labels, pod) = (&template["metadata"]["labels"], &template["spec"]);
    for selector in [
        &of_kind("Deployment")["spec"]["selector"]["matchLabels"],
        &of_kind("Service")["spec"]["selector"],
        &of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(
        container["securityContext"]["allowPrivilegeEscalation"],
        false
    );
    assert_eq!(container["args"], serde_json::json!(["read"]));
    let taken = files::text("worker/src/main.rs");
    for variable in container["env"].as_array().expect("variables") {
        let name = variable["name"].as_str().expect("a name");
        assert!(taken.contains(&format!("env = \"{name}\"")), "{name}");
    }
}
