//! The release of the chart itself: tested, upgraded in mid-job, taken away.

use std::time::{Duration, Instant};

use crate::cluster::{SYSTEM, turn};
use crate::tenant::Tenant;

#[test]
fn an_upgrade_in_mid_job_keeps_the_password_and_loses_no_row() {
    let Some(cluster) = turn() else { return };
    let (tenant, rows) = Tenant::at_work(&cluster, "upgrade");
    let password = || {
        let template = "go-template={{.data.password}}";
        cluster.kubectl(&[
            "-n",
            SYSTEM,
            "get",
            "secret/millrace-leases",
            "-o",
            template,
        ])
    };
    let before = password();
    cluster.upgrade(&["--set", "operator.podAnnotations.upgraded=yes"]);
    assert_eq!(password(), before);
    let tested = cluster
        .inside("helm")
        .args(["test", "millrace", "-n", SYSTEM])
        .output();
    let tested = tested.unwrap();
    let said = String::from_utf8_lossy(&tested.stdout);
    assert!(tested.status.success(), "{said}");
    assert!(said.contains("Phase:          Succeeded"), "{said}");
    tenant.check_succeeded("embed", &rows, 300);
    let url = cluster.kubectl(&[
        "-n",
        tenant.namespace(),
        "get",
        "secret/minilm-leases",
        "-o",
        "go-template={{.data.url | base64decode}}",
    ]);
    let user = format!("redis://millrace-{}:", tenant.namespace());
    assert!(
        url.starts_with(&user),
        "workers are users of their namespace alone"
    );
}

/// What every namespace has.
const OF_A_NAMESPACE: [&str; 2] = ["configmap/kube-root-ca.crt", "serviceaccount/default"];

/// How long the objects may take that go with others.
const COLLECTED_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn uninstalling_leaves_nothing_but_the_crds() {
    let Some(cluster) = turn() else { return };
    cluster.uninstall();
    // Without a selector: what lacks the release's labels is left behind as well.
    let kinds = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,\
                 poddisruptionbudgets,leases";
    let left = || -> Vec<String> {
        let listed = cluster.kubectl(&["-n", SYSTEM, "get", kinds, "-o", "name"]);
        let names = listed.lines().filter(|name| !OF_A_NAMESPACE.contains(name));
        names.map(str::to_owned).collect()
    };
    let begun = Instant::now();
    while !left().is_empty() && begun.elapsed() < COLLECTED_WITHIN {
        std::thread::sleep(Duration::from_millis(200));
    }
    let left = left();
    let of_release = "app.kubernetes.io/instance=millrace";
    let cluster_wide = "clusterroles,clusterrolebindings";
    let left_wide = cluster.kubectl(&["get", cluster_wide, "-l", of_release, "-o", "name"]);
    let crds = cluster.kubectl(&["get", "crds", "-o", "name"]);
    cluster.install();
    assert!(
        left.is_empty() && left_wide.is_empty(),
        "{left:?} {left_wide}"
    );
    assert!(crds.contains("batchjobs.millrace.dev"), "{crds}");
    assert!(crds.contains("inferenceservices.millrace.dev"), "{crds}");
}
