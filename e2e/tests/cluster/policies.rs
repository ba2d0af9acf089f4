//! Who reaches whom over the network.

use millrace_e2e::skips::skip;

use crate::cluster::{Cluster, SYSTEM};
use crate::tenant::Tenant;
use crate::turn::turn;

/// Nobody may reach the pod `listens`.
const NOBODY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: NAMESPACE}
spec: {podSelector: {matchLabels: {probe: listens}}, policyTypes: [Ingress]}
";

/// A pod.
const PROBE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: PROBE, namespace: NAMESPACE, labels: {probe: PROBE}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: probe
      image: IMAGE
      imagePullPolicy: IfNotPresent
      command: COMMAND
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
";

/// The pods, and what they do: one is listened at, the other is there to ask from.
const PROBES: [(&str, &str); 2] = [
    ("listens", "[busybox, httpd, -f, -p, '7000']"),
    ("asks", "[busybox, sleep, '600']"),
];

/// Starts both pods in a namespace.
fn start_probes(cluster: &Cluster, namespace: &str) {
    let pods = PROBES.map(|(name, command)| {
        let pod = PROBE.replace("PROBE", name).replace("COMMAND", command);
        pod.replace("IMAGE", &cluster.image("redis"))
    });
    let probes = format!("{NOBODY}---{}", pods.join("---"));
    cluster.apply(&probes.replace("NAMESPACE", namespace));
    let ready = ["wait", "--for=condition=Ready", "pod/listens", "pod/asks"];
    cluster.kubectl(&[&["-n", namespace, "--timeout=60s"], &ready[..]].concat());
}

/// Whether the pod that asks in a namespace gets any answer from a port. The image has a client of Redis
/// alone, to which an answer of HTTP is one that it does not understand.
fn reaches(cluster: &Cluster, namespace: &str, address: &str, port: &str) -> bool {
    let client = [
        "busybox",
        "timeout",
        "5",
        "redis-cli",
        "-h",
        address,
        "-p",
        port,
        "PING",
    ];
    let exec = ["-n", namespace, "exec", "asks", "--"];
    let asked = cluster.try_kubectl(&[&exec[..], &client[..]].concat());
    String::from_utf8_lossy(&asked.stderr).contains("Protocol error")
}

/// Names of the policies in a namespace.
fn policies(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let listed = cluster.list(namespace, "networkpolicies", "");
    let names = listed.iter().map(|policy| &policy["metadata"]["name"]);
    let mut names: Vec<String> = names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_pods_of_the_release_of_services_and_of_jobs_have_policies() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "policies");
    let rows = tenant.rows(20);
    tenant.service("");
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.check_succeeded("embed", &rows, 120);
    let of_tenant = policies(&cluster, tenant.namespace());
    assert_eq!(of_tenant, ["embed-steps", "minilm-inference"]);
    let of_release = policies(&cluster, SYSTEM);
    let expected = ["default-deny", "leases", "operator", "test"];
    assert_eq!(of_release, expected.map(|name| format!("millrace-{name}")));
}

#[test]
fn what_policies_forbid_is_out_of_reach() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "reach");
    let namespace = tenant.namespace();
    start_probes(&cluster, namespace);
    let address = |what: &str, path: &str| {
        let path = format!("jsonpath={path}");
        cluster.kubectl(&["-n", namespace, "get", what, "-o", &path])
    };
    let listens = address("pod/listens", "{.status.podIP}");
    if reaches(&cluster, namespace, &listens, "7000") {
        return skip("the network of this cluster enforces no NetworkPolicy");
    }
    tenant.service("");
    tenant.wait_until_serving(120);
    let service = address("service/minilm-inference", "{.spec.clusterIP}");
    assert!(
        reaches(&cluster, namespace, &service, "80"),
        "its namespace does"
    );
    let stranger = Tenant::new(&cluster, "stranger");
    start_probes(&cluster, stranger.namespace());
    let is_reached = reaches(&cluster, stranger.namespace(), &service, "80");
    assert!(!is_reached, "another namespace reaches the service");
}
