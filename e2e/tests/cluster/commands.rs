//! The `millrace` command against a real Kubernetes: what it sends, shows and changes.

use std::process::{Command, Output};

use millrace_e2e::process::binary;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::tenant::{ROWS_AT_WORK, SMALL_SHARDS, Tenant, UNHURRIED};
use crate::turn::turn;

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    #[track_caller]
    fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

/// The command with these arguments, in the tenant's namespace.
fn command(cluster: &Cluster, tenant: &Tenant, arguments: &[&str]) -> Command {
    let mut command = cluster.inside(binary("millrace").to_str().unwrap());
    command.args(arguments).args(["-n", tenant.namespace()]);
    command
}

fn millrace(cluster: &Cluster, tenant: &Tenant, arguments: &[&str]) -> Ended {
    let Output {
        status,
        stdout,
        stderr,
    } = command(cluster, tenant, arguments).output().unwrap();
    Ended {
        code: status.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Submits a job over `rows.jsonl`.
fn submit(cluster: &Cluster, tenant: &Tenant, settings: &str, flags: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yaml");
    std::fs::write(&file, tenant.job_manifest("embed", settings)).unwrap();
    let mut arguments = vec!["submit", "-f", file.to_str().unwrap()];
    arguments.extend(flags);
    millrace(cluster, tenant, &arguments)
}

#[test]
fn a_submitted_job_is_followed_to_its_end_and_shown_by_every_command() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "commands");
    let rows = tenant.rows(200);
    tenant.service("");
    let ended = submit(&cluster, &tenant, "", &["--watch"]).expect_code(0);
    assert!(
        ended.stdout.starts_with("batchjob/embed created\n"),
        "{ended:#?}"
    );
    assert!(ended.stdout.contains("200 succeeded"), "{ended:#?}");
    // A pipe gets a line for each state, and no flood.
    assert!(ended.stderr.contains("Running"), "{ended:#?}");
    assert!(ended.stderr.lines().count() < 30, "{ended:#?}");
    tenant.check_succeeded("embed", &rows, 10);

    let again = submit(&cluster, &tenant, "", &["--watch"]).expect_code(0);
    assert!(again.stdout.starts_with("batchjob/embed unchanged\n"));
    let changed = submit(&cluster, &tenant, "  priority: 3\n", &[]).expect_code(0);
    assert!(changed.stdout.starts_with("batchjob/embed configured\n"));

    let status = millrace(&cluster, &tenant, &["status", "embed"]).expect_code(0);
    for expected in [
        "Completed",
        "minilm",
        "200 succeeded",
        "100%",
        "batchjob/embed",
    ] {
        assert!(status.stdout.contains(expected), "{expected}: {status:#?}");
    }
    let json = millrace(&cluster, &tenant, &["status", "embed", "-o", "json"]).expect_code(0);
    let job: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(job["status"]["rows"]["succeeded"], 200);
    let list = millrace(&cluster, &tenant, &["list"]).expect_code(0);
    let row = list.stdout.lines().nth(1).unwrap_or_default();
    for expected in ["embed", "minilm", "True", "Completed", "100%"] {
        assert!(row.contains(expected), "{list:#?}");
    }

    let planned = millrace(&cluster, &tenant, &["logs", "embed", "--step", "plan"]).expect_code(0);
    let of_plan = |line: &str| line.starts_with("[embed-plan-") && line.contains("/step] ");
    assert!(planned.stdout.lines().all(of_plan), "{planned:#?}");
    let worked = millrace(&cluster, &tenant, &["logs", "embed", "--step", "work"]).expect_code(0);
    assert!(
        worked.stdout.lines().any(|line| line.contains("/server] ")),
        "{worked:#?}"
    );
}

#[test]
fn results_of_a_job_are_read_by_its_name() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "reads");
    tenant.rows(20);
    tenant.service("");
    submit(&cluster, &tenant, "", &["--watch"]).expect_code(0);
    let mut command = command(&cluster, &tenant, &["results", "batchjob/embed"]);
    let read = command.envs(tenant.store_variables()).output().unwrap();
    assert!(read.status.success(), "{read:?}");
    let lines = String::from_utf8(read.stdout).unwrap();
    assert_eq!(lines.lines().count(), 20);
}

#[test]
fn a_job_is_suspended_and_resumed_by_name() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "wishes");
    let rows = tenant.rows(ROWS_AT_WORK);
    tenant.service(UNHURRIED);
    submit(&cluster, &tenant, SMALL_SHARDS, &[]).expect_code(0);
    tenant.wait_until_at_work("embed", 120);
    let refused = millrace(&cluster, &tenant, &["retry", "embed", "--failed-only"]);
    assert!(refused.expect_code(1).stderr.contains("is not over"));
    for said in ["suspended: ", "suspended already"] {
        let ended = millrace(&cluster, &tenant, &["suspend", "embed"]).expect_code(0);
        assert!(ended.stdout.contains(said), "{ended:#?}");
    }
    tenant.wait_for_reason("embed", "Suspended", 30);
    let status = millrace(&cluster, &tenant, &["status", "embed"]).expect_code(0);
    assert!(
        status.stdout.contains("millrace resume embed"),
        "{status:#?}"
    );
    // The same manifest once more, which says nothing of it, does not wake the job.
    submit(&cluster, &tenant, SMALL_SHARDS, &[]).expect_code(0);
    assert_eq!(tenant.job("embed")["spec"]["suspend"], true);
    for said in ["resumed: ", "is not suspended"] {
        let ended = millrace(&cluster, &tenant, &["resume", "embed"]).expect_code(0);
        assert!(ended.stdout.contains(said), "{ended:#?}");
    }
    let followed = millrace(&cluster, &tenant, &["logs", "embed", "--follow"]).expect_code(0);
    let finished = |line: &str| line.starts_with("[embed-finish-");
    assert!(followed.stdout.lines().any(finished), "{followed:#?}");
    tenant.check_succeeded("embed", &rows, 30);
    let watched = millrace(&cluster, &tenant, &["status", "embed", "--watch"]).expect_code(0);
    assert!(watched.stdout.contains("2,000 succeeded"), "{watched:#?}");
    let nothing = millrace(&cluster, &tenant, &["retry", "embed", "--failed-only"]);
    assert!(
        nothing
            .expect_code(1)
            .stderr
            .contains("nothing to run again")
    );
}

#[test]
fn failed_rows_are_run_again_by_name_and_a_report_of_the_job_names_no_row_and_no_key() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "again");
    let mut rows = tenant.rows(200);
    rows.extend(b"{\"id\": \"bad\", \"text\": \"\"}\n");
    std::fs::write(tenant.bucket().join("rows.jsonl"), &rows).unwrap();
    tenant.service("");
    submit(&cluster, &tenant, "", &["--watch"]).expect_code(0);
    let retried = millrace(&cluster, &tenant, &["retry", "embed", "--failed-only"]);
    assert!(retried.expect_code(0).stdout.contains("1 failed rows"));
    cluster.wait(tenant.namespace(), 120, "the second run is over", || {
        let (_, reason) = tenant.condition("embed", "Succeeded")?;
        (tenant.job("embed")["status"]["run"] == 2 && reason == "Completed").then_some(())
    });
    let latest = millrace(&cluster, &tenant, &["status", "@latest"]).expect_code(0);
    assert!(latest.stdout.contains("batchjob/embed"), "{latest:#?}");
    assert!(latest.stdout.contains("200 succeeded"), "{latest:#?}");

    let report = millrace(&cluster, &tenant, &["report", "embed"]).expect_code(0);
    let report = report.stdout;
    let first: Value =
        serde_json::from_slice(rows.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    let [_, (_, secret), ..] = tenant.store_variables();
    for hidden in [first["text"].as_str().unwrap(), &secret] {
        assert!(!report.contains(hidden), "{hidden}");
    }
    assert!(report.contains("Completed"), "{report}");
}

#[test]
fn a_job_is_cancelled_by_name() {
    let Some(cluster) = turn() else { return };
    let (tenant, _) = Tenant::at_work(&cluster, "cancelled");
    let cancelled = millrace(&cluster, &tenant, &["cancel", "embed"]).expect_code(0);
    assert!(
        cancelled.stdout.contains("embed cancelled: "),
        "{cancelled:#?}"
    );
    tenant.wait_for_reason("embed", "Cancelled", 60);
    let status = millrace(&cluster, &tenant, &["status", "embed"]).expect_code(0);
    assert!(status.stdout.contains("Cancelled"), "{status:#?}");
}

#[test]
fn kubectl_finds_its_plugin() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "plugin");
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.wait_for_reason("embed", "ServiceNotFound", 30);
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-millrace");
    std::os::unix::fs::symlink(binary("millrace"), plugin).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut kubectl = cluster.inside("kubectl");
    kubectl.env("PATH", format!("{}:{path}", folder.path().display()));
    let listed = kubectl.args(["millrace", "list", "-A"]).output().unwrap();
    let said = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.status.success(), "{listed:?}");
    let row = said.lines().find(|line| line.contains(tenant.namespace()));
    assert!(
        row.is_some_and(|row| row.contains("ServiceNotFound")),
        "{said}"
    );
}

#[test]
fn an_installed_cluster_passes_its_checks() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "checks");
    for flags in [&["check", "--pre"][..], &["check"]] {
        let ended = millrace(&cluster, &tenant, flags).expect_code(0);
        let lines: Vec<&str> = ended.stdout.lines().collect();
        assert!(lines.len() >= 4, "{ended:#?}");
        assert!(
            lines.iter().all(|line| line.starts_with("✓ ")),
            "{ended:#?}"
        );
    }
}

#[test]
fn a_job_that_is_not_there_is_named_with_the_way_to_those_that_are() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "nobody");
    for command in ["status", "logs", "suspend", "cancel"] {
        let ended = millrace(&cluster, &tenant, &[command, "nobody"]).expect_code(1);
        assert!(ended.stderr.contains("batchjob/nobody"), "{ended:#?}");
        assert!(ended.stderr.contains("millrace list -A"), "{ended:#?}");
    }
}
