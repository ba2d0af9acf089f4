//! The release of the chart itself: tested, upgraded in mid-job, taken away.

use std::time::{Duration, Instant};

use millrace_e2e::files::{copy, repository};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{Cluster, SYSTEM};
use crate::tenant::{ROWS_AT_WORK, Tenant};
use crate::turn::turn_alone;

#[test]
fn an_upgrade_in_mid_job_keeps_the_password_and_loses_no_row() {
    let Some(cluster) = turn_alone() else { return };
    let (tenant, rows) = Tenant::at_work_on(&cluster, "upgrade", 2 * ROWS_AT_WORK);
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

/// A field of a job that the version before did not have.
const NEW_FIELD: &str = "ttlSecondsAfterFinished";

/// A copy of the chart whose CRD lacks that field.
fn chart_before() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("millrace");
    copy(&repository().join("charts/millrace"), &chart);
    let file = chart.join("files/crds/batchjobs.yaml");
    let crd = std::fs::read_to_string(&file).unwrap();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut within = None;
    let lines = crd.lines().filter(|line| {
        if line.trim_start() == format!("{NEW_FIELD}:") {
            within = Some(indent(line));
            return false;
        }
        within = within.filter(|outer| indent(line) > *outer);
        within.is_none()
    });
    let before = lines.collect::<Vec<_>>().join("\n");
    assert!(before.len() < crd.len() - NEW_FIELD.len());
    std::fs::write(file, before).unwrap();
    folder
}

#[test]
fn an_upgrade_brings_new_fields_to_the_objects_that_are_there() {
    let Some(cluster) = turn_alone() else { return };
    let tenant = Tenant::new(&cluster, "fields");
    let rows = tenant.rows(20);
    let before = chart_before();
    cluster.upgrade_to(&before.path().join("millrace"), &[]);
    tenant.service("");
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.check_succeeded("embed", &rows, 120);
    let with_field = tenant.job_manifest("embed", &format!("  {NEW_FIELD}: 1\n"));
    let refused = cluster.try_apply(&with_field);
    cluster.upgrade(&[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains(&format!("unknown field \"spec.{NEW_FIELD}\"")),
        "{said}"
    );
    tenant.check_succeeded("embed", &rows, 10);
    // The API server takes a moment to serve a CRD that has changed.
    cluster.wait(tenant.namespace(), 30, "the new field is taken", || {
        cluster
            .try_apply(&with_field)
            .status
            .success()
            .then_some(())
    });
    cluster.wait(tenant.namespace(), 60, "the new field is obeyed", || {
        let job = cluster.get(tenant.namespace(), "batchjob/embed");
        job.is_none().then_some(())
    });
}

/// What every namespace has.
const OF_A_NAMESPACE: [&str; 2] = ["configmap/kube-root-ca.crt", "serviceaccount/default"];

/// How long the objects may take that go with others.
const COLLECTED_WITHIN: Duration = Duration::from_secs(60);

/// Kinds of which the cluster keeps its own records: they go when it forgets them.
const OF_THE_CLUSTER: [&str; 3] = ["event", "endpoint", "podmetrics"];

/// Everything in a namespace, or, without one, what lies in none, as `kind/name`.
fn everything(cluster: &Cluster, namespace: Option<&str>) -> Vec<String> {
    let is_namespaced = format!("--namespaced={}", namespace.is_some());
    let kinds = [
        "api-resources",
        "--verbs=list",
        "-o",
        "name",
        &is_namespaced,
    ];
    let kinds = cluster.kubectl(&kinds);
    let kinds = kinds
        .lines()
        .filter(|kind| !OF_THE_CLUSTER.iter().any(|own| kind.starts_with(own)));
    let kinds = kinds.collect::<Vec<_>>().join(",");
    let mut get = vec!["get", &kinds, "-o", "name", "--ignore-not-found"];
    get.extend(namespace.iter().flat_map(|namespace| ["-n", namespace]));
    let listed = cluster.kubectl(&get);
    let names = listed.lines().filter(|name| !OF_A_NAMESPACE.contains(name));
    names.map(str::to_owned).collect()
}

#[test]
fn uninstalling_leaves_nothing_but_the_crds() {
    let Some(cluster) = turn_alone() else { return };
    let tenant = Tenant::new(&cluster, "leaves");
    let rows = tenant.rows(200);
    tenant.service("");
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.check_succeeded("embed", &rows, 120);
    let namespace = tenant.namespace();
    let both = ["batchjob/embed", "inferenceservices.millrace.dev/minilm"];
    cluster.kubectl(&[&["-n", namespace, "delete"], &both[..]].concat());
    cluster.uninstall();
    let left = || {
        let of_tenant = everything(&cluster, Some(namespace));
        let of_tenant = of_tenant.into_iter().filter(|name| name != "secret/bucket");
        let mut left = everything(&cluster, Some(SYSTEM));
        left.extend(of_tenant);
        left
    };
    let begun = Instant::now();
    while !left().is_empty() && begun.elapsed() < COLLECTED_WITHIN {
        std::thread::sleep(Duration::from_millis(500));
    }
    let left = left();
    let mut of_cluster = everything(&cluster, None);
    // Namespaces are the user's, and the cluster serves a group for as long as there is a CRD of it.
    let stays = |name: &str| name.starts_with("namespace/") || name.starts_with("apiservice");
    of_cluster.retain(|name| name.contains("millrace") && !stays(name));
    of_cluster.sort();
    cluster.install();
    assert!(left.is_empty(), "{left:?}");
    let crds = ["batchjobs.millrace.dev", "inferenceservices.millrace.dev"];
    let crds = crds.map(|name| format!("customresourcedefinition.apiextensions.k8s.io/{name}"));
    assert_eq!(of_cluster, crds);
}

/// Brings the usual release back when dropped, whatever became of another one.
struct Usual<'a>(&'a Cluster);

impl Drop for Usual<'_> {
    fn drop(&mut self) {
        self.0.uninstall();
        self.0.install();
    }
}

#[test]
fn a_release_with_rights_in_one_namespace_works_a_job_off_with_a_cache_and_tells_of_it() {
    let Some(cluster) = turn_alone() else { return };
    let tenant = Tenant::new(&cluster, "single");
    let namespace = tenant.namespace();
    let rows = tenant.rows(200);
    cluster.uninstall();
    let _usual = Usual(&cluster);
    let watched = format!("watchNamespace={namespace}");
    cluster.upgrade(&[
        "--set",
        &watched,
        "--set",
        "cache.enabled=true",
        "--set",
        "api.enabled=true",
    ]);
    tenant.service("  cache: {enabled: true}\n");
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.check_succeeded("embed", &rows, 180);
    // The same rows again are known.
    cluster.apply(&tenant.job_manifest("again", ""));
    tenant.check_succeeded("again", &rows, 120);
    let manifest = tenant.manifest("again");
    assert_eq!(manifest["totals"]["tokens"], 0, "nothing is computed again");

    let account = ["-n", namespace, "create", "serviceaccount", "reader"];
    cluster.kubectl(&account);
    let rights = ["--verb=get", "--resource=batchjobs.millrace.dev"];
    cluster.kubectl(&[&["-n", namespace, "create", "role", "reader"], &rights[..]].concat());
    let whose = format!("--serviceaccount={namespace}:reader");
    let binding = ["rolebinding", "reader", "--role=reader", &whose];
    cluster.kubectl(&[&["-n", namespace, "create"], &binding[..]].concat());
    let token = cluster.kubectl(&["-n", namespace, "create", "token", "reader"]);
    let address = "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}";
    let address = cluster.kubectl(&["-n", SYSTEM, "get", "service/millrace-api", "-o", address]);
    let url = format!("http://{address}/api/v1/namespaces/{namespace}/jobs/embed/progress");
    let asked = cluster.ask(&url, token.trim());
    let elsewhere = cluster.try_apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: not-watched}\n---\n\
         apiVersion: millrace.dev/v1alpha1\nkind: InferenceService\n\
         metadata: {name: other, namespace: not-watched}\nspec:\n  models: [{name: m, task: \
         Embedding, source: {uri: 's3://b/m'}}]\n",
    );
    std::thread::sleep(Duration::from_secs(3));
    let other = cluster.get("not-watched", "inferenceservices.millrace.dev/other");
    cluster.kubectl(&["delete", "namespace", "not-watched", "--wait=false"]);
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "{said}");
    let progress: Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(progress["progress"]["rowsSucceeded"], 200, "{progress}");
    assert!(elsewhere.status.success(), "{elsewhere:?}");
    assert_eq!(
        other.unwrap()["status"],
        json!({"observedGeneration": -1}),
        "it is none of the release's business"
    );
}
