//! The examples for clusters are objects that an API server would take.

use std::process::Command;

use millrace_crds::manifest::{Kind, Manifest, read_path, read_str};
use serde_json::Value;

use crate::files;
use crate::metrics::OPERATOR;
use crate::programs::of_kubernetes;

fn kinds(manifests: &[Manifest]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = manifests.iter().map(Manifest::kind).collect();
    kinds.sort();
    kinds
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
    let Some(kubectl) = of_kubernetes("kubectl") else {
        return;
    };
    for environment in ["staging", "production"] {
        let overlay = files::path("examples/gitops/overlays").join(environment);
        let output = Command::new(&kubectl)
            .arg("kustomize")
            .arg(&overlay)
            .output()
            .expect("kubectl runs");
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{environment}: {problem}");
        let text = String::from_utf8(output.stdout).expect("kubectl prints UTF-8");
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
    let Some(kubectl) = of_kubernetes("kubectl") else {
        return;
    };
    let build = |folder: &std::path::Path| {
        let output = Command::new(&kubectl)
            .arg("kustomize")
            .arg(folder)
            .output()
            .expect("kubectl runs");
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {problem}", folder.display());
        String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
    };
    let flux = build(&files::path("examples/gitops/flux"));
    assert_eq!(flux.matches("healthCheckExprs:").count(), 2, "{flux}");

    // As beside Argo CD's own manifests, which hold the ConfigMap that is added to.
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(
        folder.join("argocd-cm.yaml"),
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: argocd-cm}, data: {url: https://argo}}",
    )
    .unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(files::path("gitops/argocd"))
        .arg(folder.join("health"))
        .status();
    assert!(copied.expect("cp runs").success());
    std::fs::write(
        folder.join("kustomization.yaml"),
        "{resources: [argocd-cm.yaml], components: [health]}",
    )
    .unwrap();
    let argo = build(folder);
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
