//! Jobs whose pods and store are taken away in the middle: every row exactly once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::cluster::Cluster;
use crate::tenant::{ROWS_AT_WORK, SELECTOR, Tenant};
use crate::turn::turn;

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
fn a_rolling_update_in_mid_job_loses_no_row() {
    let Some(cluster) = turn() else { return };
    // The pod stays until the next one serves.
    let (tenant, rows) = Tenant::at_work_on(&cluster, "rolled", 3 * ROWS_AT_WORK);
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
fn a_store_that_answers_503_for_a_while_loses_no_row() {
    let Some(cluster) = turn() else { return };
    let (mut tenant, rows) = Tenant::at_work(&cluster, "store");
    tenant.refuse_for(15);
    tenant.check_succeeded("embed", &rows, 300);
    assert_eq!(tenant.job("embed")["status"]["shards"]["failed"], 0);
}
