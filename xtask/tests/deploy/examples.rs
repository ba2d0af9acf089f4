//! The examples for clusters are objects that an API server would take.

use std::process::Command;

use millrace_crds::manifest::{Kind, Manifest, read_path, read_str};

use crate::files;
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
