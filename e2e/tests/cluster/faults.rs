//! Jobs whose pods, operator and Redis are taken away in the middle: every row exactly once.

use std::time::Duration;

use crate::cluster::{SYSTEM, turn, turn_at_own};
use crate::tenant::Tenant;

#[test]
fn a_killed_pod_loses_no_row() {
    let Some(cluster) = turn() else { return };
    let (tenant, rows) = Tenant::at_work(&cluster, "pod");
    let selector = "millrace.dev/inference-service=minilm";
    cluster.kubectl(&[
        "-n",
        tenant.namespace(),
        "delete",
        "pod",
        "-l",
        selector,
        "--grace-period=0",
        "--force",
        "--wait=false",
    ]);
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn shards_go_on_while_the_operator_is_away_and_the_status_catches_up() {
    let Some(cluster) = turn() else { return };
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
    let commits = tenant.bucket().join("embed/_millrace/runs/0001/commits");
    let committed = || std::fs::read_dir(&commits).map_or(0, Iterator::count);
    let before = committed();
    cluster.wait(tenant.namespace(), 60, "shards go on", || {
        (committed() > before + 3).then_some(())
    });
    scale("1");
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn a_flushed_and_a_killed_redis_lose_no_row() {
    let Some(cluster) = turn_at_own("it speaks with Redis in the network of the pods") else {
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
    let Some(cluster) = turn_at_own("it drains the node") else {
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
    let pods = cluster.list(
        tenant.namespace(),
        "pods",
        "millrace.dev/inference-service=minilm",
    );
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
