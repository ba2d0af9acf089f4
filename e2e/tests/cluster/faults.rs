//! Jobs whose pods, operator and Redis are taken away in the middle: every row exactly once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::cluster::{Cluster, SYSTEM, turn, turn_alone, turn_alone_at_own};
use crate::tenant::{SELECTOR, Tenant};

#[test]
fn a_killed_pod_loses_no_row() {
    let Some(cluster) = turn() else { return };
    let (tenant, rows) = Tenant::at_work(&cluster, "pod");
    cluster.kubectl(&[
        "-n",
        tenant.namespace(),
        "delete",
        "pod",
        "-l",
        SELECTOR,
        "--grace-period=0",
        "--force",
        "--wait=false",
    ]);
    tenant.assert_at_work("embed");
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn a_killed_operator_loses_no_row() {
    let Some(cluster) = turn_alone() else { return };
    let (tenant, rows) = Tenant::at_work(&cluster, "killed");
    let selector = "app.kubernetes.io/component=operator";
    let now = ["--grace-period=0", "--force"];
    cluster.kubectl(&[&["-n", SYSTEM, "delete", "pod", "-l", selector], &now[..]].concat());
    tenant.assert_at_work("embed");
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn a_rolling_update_in_mid_job_loses_no_row() {
    let Some(cluster) = turn() else { return };
    let (tenant, rows) = Tenant::at_work(&cluster, "rolled");
    let namespace = tenant.namespace();
    let names = || -> Vec<String> {
        let pods = cluster.list(namespace, "pods", SELECTOR);
        let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str());
        names.map(|name| name.unwrap().to_owned()).collect()
    };
    let before = names();
    let worker = Forwarded::start(&cluster, namespace, &before[0]);
    tenant.service("  template: {podAnnotations: {rolled: 'yes'}}\n");
    cluster.wait(namespace, 120, "the pod gives its shards back", || {
        let metrics = worker.ask("/metrics");
        let released = metrics
            .lines()
            .find_map(|line| line.strip_prefix(RELEASED))?;
        (released.trim().parse::<u32>().unwrap() > 0).then_some(())
    });
    cluster.wait(namespace, 30, "the pod is gone", || {
        let now = names();
        (!now.is_empty() && now.iter().all(|name| !before.contains(name))).then_some(())
    });
    tenant.check_succeeded("embed", &rows, 300);
}

/// The metric of the shards that a worker gave back.
const RELEASED: &str = "millrace_worker_shards_total{outcome=\"released\"} ";

/// Port of a pod's worker.
const WORKER_PORT: &str = "8081";

/// A way to the worker of a pod; closed when dropped.
struct Forwarded<'a> {
    cluster: &'a Cluster,
    kubectl: Child,
    address: String,
}

impl<'a> Forwarded<'a> {
    /// Opens it at a free port of the network in which the cluster is reached.
    fn start(cluster: &'a Cluster, namespace: &str, pod: &str) -> Self {
        let mut kubectl = cluster.tied("kubectl");
        kubectl.args(["-n", namespace, "port-forward", &format!("pod/{pod}")]);
        kubectl
            .arg(format!(":{WORKER_PORT}"))
            .stdout(Stdio::piped());
        let mut kubectl = kubectl.spawn().expect("kubectl starts");
        let mut line = String::new();
        let stdout = kubectl.stdout.as_mut().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["Forwarding", "from", address, ..] = words[..] else {
            panic!("{line:?} names no port");
        };
        Self {
            address: address.to_owned(),
            cluster,
            kubectl,
        }
    }

    /// What the worker answers; nothing once it is gone.
    fn ask(&self, path: &str) -> String {
        let asked = self
            .cluster
            .ask(&format!("http://{}{path}", self.address), "");
        String::from_utf8_lossy(&asked.stdout).into_owned()
    }
}

impl Drop for Forwarded<'_> {
    fn drop(&mut self) {
        self.kubectl.kill().ok();
        self.kubectl.wait().ok();
    }
}

#[test]
fn shards_go_on_while_the_operator_is_away_and_the_status_catches_up() {
    let Some(cluster) = turn_alone() else { return };
    let (tenant, rows) = Tenant::at_work(&cluster, "operator");
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        cluster.kubectl(&[
            "-n",
            SYSTEM,
            "scale",
            "deployment/millrace-operator",
            &replicas,
        ]);
    };
    scale("0");
    let selector = "app.kubernetes.io/component=operator";
    cluster.wait(SYSTEM, 60, "the operator is away", || {
        cluster
            .list(SYSTEM, "pods", selector)
            .is_empty()
            .then_some(())
    });
    tenant.assert_at_work("embed");
    let planned = tenant.shards_planned("embed");
    cluster.wait(tenant.namespace(), 200, "shards go on to the end", || {
        (tenant.shards_committed("embed") + 2 >= planned).then_some(())
    });
    let told = tenant.job("embed")["status"]["shards"]["committed"].as_u64();
    assert!(told.unwrap() + 2 < planned as u64, "nobody told of them");
    scale("1");
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn a_flushed_and_a_killed_redis_lose_no_row() {
    let Some(cluster) = turn_alone_at_own("it speaks with Redis in the network of the pods") else {
        return;
    };
    let (tenant, rows) = Tenant::at_work(&cluster, "redis");
    let address = cluster.kubectl(&[
        "-n",
        SYSTEM,
        "get",
        "service/millrace-leases",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]);
    let password = cluster.kubectl(&[
        "-n",
        SYSTEM,
        "get",
        "secret/millrace-leases",
        "-o",
        "go-template={{.data.password | base64decode}}",
    ]);
    let mut flush = cluster.inside("redis-cli");
    let flush = flush.env("REDISCLI_AUTH", password);
    let flushed = flush.args(["-h", &address, "FLUSHALL"]).status();
    assert!(flushed.unwrap().success());
    tenant.assert_at_work("embed");
    std::thread::sleep(Duration::from_secs(3));
    cluster.kubectl(&[
        "-n",
        SYSTEM,
        "delete",
        "pod",
        "millrace-leases-0",
        "--grace-period=0",
        "--force",
    ]);
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn a_drained_node_loses_no_row() {
    let Some(cluster) = turn_alone_at_own("it drains the node") else {
        return;
    };
    let (tenant, rows) = Tenant::at_work(&cluster, "drain");
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    // The operator and Redis go with it: they are on the same node.
    cluster.kubectl(&[
        "drain",
        &node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=150s",
    ]);
    let pods = cluster.list(tenant.namespace(), "pods", SELECTOR);
    let running = pods
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running");
    assert_eq!(running.count(), 0, "the node is drained");
    cluster.kubectl(&["uncordon", &node]);
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn a_store_that_answers_503_for_a_while_loses_no_row() {
    let Some(cluster) = turn() else { return };
    let (mut tenant, rows) = Tenant::at_work(&cluster, "store");
    tenant.refuse_for(15);
    tenant.check_succeeded("embed", &rows, 300);
    assert_eq!(tenant.job("embed")["status"]["shards"]["failed"], 0);
}
