//! Jobs as they should go.

use crate::cluster::turn;
use crate::tenant::Tenant;

/// Rows of the main job: the size that people try first.
const ROWS: usize = 20_000;

#[test]
fn a_job_is_planned_worked_off_by_two_pods_and_finished_with_every_row_once() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "main");
    let rows = tenant.rows(ROWS);
    tenant.service("  autoscaling: {minReplicas: 0, maxReplicas: 2, idleSeconds: 5}\n");
    cluster.apply(&tenant.job_manifest("embed", "  sharding: {targetBytes: 65536}\n"));
    tenant.wait_for_reason("embed", "Running", 60);
    cluster.wait(tenant.namespace(), 120, "two pods serve", || {
        let service = cluster.get(tenant.namespace(), "inferenceservice/minilm")?;
        (service["status"]["readyReplicas"] == 2).then_some(())
    });
    tenant.check_succeeded("embed", &rows, 400);
    assert_eq!(tenant.condition("embed", "Ready").unwrap().0, "True");
    assert_eq!(tenant.condition("embed", "Stalled").unwrap().0, "False");
    let columns = cluster.kubectl(&["-n", tenant.namespace(), "get", "batchjob", "embed"]);
    assert!(
        columns.contains("Completed") && columns.contains("100%"),
        "{columns}"
    );
    // The service goes to sleep again.
    cluster.wait(tenant.namespace(), 120, "no pod is left", || {
        let selector = "millrace.dev/inference-service=minilm";
        let pods = cluster.list(tenant.namespace(), "pods", selector);
        pods.is_empty().then_some(())
    });
}

#[test]
fn a_job_that_names_no_service_waits_with_the_reason_and_begins_once_it_is_there() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "waits");
    let rows = tenant.rows(200);
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.wait_for_reason("embed", "ServiceNotFound", 30);
    tenant.service("");
    tenant.check_succeeded("embed", &rows, 120);
}

#[test]
fn a_suspended_job_keeps_what_is_done_and_goes_on_later() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "suspends");
    let rows = tenant.rows(4_000);
    tenant.service("");
    let running = tenant.job_manifest("embed", "  sharding: {targetBytes: 16384}\n");
    let resting = tenant.job_manifest(
        "embed",
        "  sharding: {targetBytes: 16384}\n  suspend: true\n",
    );
    cluster.apply(&running);
    tenant.wait_until_at_work("embed", 120);
    cluster.apply(&resting);
    tenant.wait_for_reason("embed", "Suspended", 30);
    cluster.apply(&running);
    tenant.check_succeeded("embed", &rows, 200);
}

#[test]
fn what_decides_the_results_cannot_be_changed() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "fixed");
    let job = tenant.job_manifest("embed", "");
    cluster.apply(&job);
    let other = job.replace("rows.jsonl", "others.jsonl");
    let refused = cluster.try_apply(&other);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(
        said.contains("input cannot be changed; create a new BatchJob instead"),
        "{said}"
    );
}
