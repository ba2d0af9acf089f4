//! Jobs whose operator, Redis and node are taken away in the middle: every row exactly once.

use std::time::Duration;

use crate::cluster::SYSTEM;
use crate::tenant::{ROWS_AT_WORK, SELECTOR, Tenant};
use crate::turn::{turn_alone, turn_alone_at_own};

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
fn shards_go_on_while_the_operator_is_away_and_the_status_catches_up() {
    let Some(cluster) = turn_alone() else { return };
    let (tenant, rows) = Tenant::at_work_on(&cluster, "operator", 2 * ROWS_AT_WORK);
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
    let (tenant, rows) = Tenant::at_work_on(&cluster, "redis", 2 * ROWS_AT_WORK);
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
    tenant.assert_at_work("embed");
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
