//! Jobs as they should go.

use std::process::{Child, Stdio};

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::cluster::Cluster;
use crate::tenant::{ROWS_AT_WORK, SELECTOR, SMALL_SHARDS, Tenant, UNHURRIED, secret};
use crate::turn::{turn, turn_at_own};

/// Rows of the main job: the size that people try first.
const ROWS: usize = 20_000;

#[test]
fn a_job_is_planned_worked_off_by_two_pods_and_finished_with_every_row_once() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "main");
    let rows = tenant.rows(ROWS);
    let namespace = tenant.namespace();
    let watch = Watch::start(&cluster, namespace);
    tenant.service("  autoscaling: {minReplicas: 0, maxReplicas: 2, idleSeconds: 5}\n");
    let service = "inferenceservices.millrace.dev/minilm";
    cluster.wait(namespace, 60, "the service sleeps", || {
        let columns = tenant.columns(service);
        is_shown(
            &columns,
            &[("READY", "True"), ("REASON", "Asleep"), ("REPLICAS", "0")],
        )
    });
    cluster.apply(&tenant.job_manifest("embed", "  sharding: {targetBytes: 65536}\n"));
    tenant.wait_for_reason("embed", "Running", 120);
    cluster.wait(namespace, 120, "two pods serve", || {
        let columns = tenant.columns(service);
        is_shown(
            &columns,
            &[("READY", "True"), ("REASON", "Serving"), ("REPLICAS", "2")],
        )
    });
    let at_work = cluster.wait(namespace, 60, "both pods are counted", || {
        let columns = tenant.columns("batchjob/embed");
        is_shown(&columns, &[("WORKERS", "2"), ("FAILED", "0")])?;
        Some(columns)
    });
    let names: Vec<&str> = at_work.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, COLUMNS);
    let running = [
        ("SUCCEEDED", "Unknown"),
        ("REASON", "Running"),
        ("OUTPUT", "s3://bucket/embed"),
    ];
    assert_eq!(is_shown(&at_work, &running), Some(()), "{at_work:?}");

    tenant.check_succeeded("embed", &rows, 400);
    assert_eq!(tenant.condition("embed", "Ready").unwrap().0, "True");
    assert_eq!(tenant.condition("embed", "Stalled").unwrap().0, "False");
    let columns = tenant.columns("batchjob/embed");
    let completed = [
        ("SUCCEEDED", "True"),
        ("REASON", "Completed"),
        ("PROGRESS", "100%"),
        ("WORKERS", ""),
    ];
    assert_eq!(is_shown(&columns, &completed), Some(()), "{columns:?}");
    check_course(&watch.lines());
    // The service goes to sleep again.
    cluster.wait(namespace, 120, "no pod is left", || {
        let pods = cluster.list(namespace, "pods", SELECTOR);
        pods.is_empty().then_some(())
    });
}

/// Columns of a job.
const COLUMNS: [&str; 10] = [
    "NAME",
    "SUCCEEDED",
    "REASON",
    "PROGRESS",
    "FAILED",
    "AGE",
    "WORKERS",
    "ROWS/S",
    "ETA",
    "OUTPUT",
];

/// Whether these columns hold these words.
fn is_shown(columns: &[(String, String)], expected: &[(&str, &str)]) -> Option<()> {
    let holds = |(name, word): &(&str, &str)| {
        let mut columns = columns.iter();
        columns.any(|(column, cell)| column == name && cell == word)
    };
    expected.iter().all(holds).then_some(())
}

/// What `kubectl get -w` prints of the jobs of a namespace; ended when dropped.
struct Watch {
    process: Child,
    printed: NamedTempFile,
}

impl Watch {
    fn start(cluster: &Cluster, namespace: &str) -> Self {
        let printed = NamedTempFile::new().unwrap();
        let mut command = cluster.tied("kubectl");
        command.args(["-n", namespace, "get", "batchjobs", "-w"]);
        command
            .stdout(printed.reopen().unwrap())
            .stderr(Stdio::null());
        Self {
            process: command.spawn().expect("kubectl starts"),
            printed,
        }
    }

    /// The lines so far, without the header.
    fn lines(&self) -> Vec<String> {
        let printed = std::fs::read_to_string(self.printed.path()).unwrap();
        printed.lines().skip(1).map(str::to_owned).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Checks that a job went one way: through its steps, and never back in its progress.
fn check_course(lines: &[String]) {
    let words = lines
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Before its first visit a job has a name and an age alone.
    let visited: Vec<_> = words.filter(|words| words.len() > 2).collect();
    let mut reasons: Vec<&str> = visited.iter().map(|words| words[2]).collect();
    reasons.dedup();
    // A status is written once a second, so that a short phase may not be seen.
    let mut course = ["Planning", "Running", "Finishing", "Completed"].iter();
    let is_course = reasons.iter().all(|reason| course.any(|it| it == reason));
    assert!(is_course && reasons.ends_with(&["Completed"]), "{lines:#?}");
    let is_percent = |word: &&&str| word.ends_with('%');
    let progress = visited
        .iter()
        .filter_map(|words| words.iter().find(is_percent));
    let progress: Vec<u32> = progress
        .map(|word| word.trim_end_matches('%').parse().unwrap())
        .collect();
    assert!(progress.is_sorted() && progress.len() > 5, "{lines:#?}");
    assert_eq!(progress.last(), Some(&100), "{lines:#?}");
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
fn a_job_whose_service_lists_a_missing_secret_says_so_and_begins_once_it_is_there() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "secretless");
    let namespace = tenant.namespace();
    let rows = tenant.rows(200);
    let service = tenant.service_manifest("");
    cluster.apply(&service.replace("[{name: bucket}]", "[{name: bucket}, {name: later}]"));
    cluster.apply(&tenant.job_manifest("embed", ""));
    cluster.wait(namespace, 120, "what its pods wait for is said", || {
        let service = cluster.get(namespace, "inferenceservice/minilm")?;
        let conditions = service["status"]["conditions"].as_array()?.clone();
        let ready = conditions.into_iter().find(|it| it["type"] == "Ready")?;
        let message = ready["message"].as_str()?;
        message.contains("secret \"later\" not found").then_some(())
    });
    cluster.apply(&secret(namespace, "later", "KEY", "value"));
    tenant.check_succeeded("embed", &rows, 180);
}

#[test]
fn a_job_that_is_suspended_a_hundred_times_keeps_what_is_done_and_goes_on_later() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "suspends");
    let rows = tenant.rows(ROWS_AT_WORK);
    let one_pod = "  autoscaling: {minReplicas: 0, maxReplicas: 1, idleSeconds: 3}\n";
    tenant.service(&format!("{UNHURRIED}{one_pod}"));
    let running = tenant.job_manifest("embed", SMALL_SHARDS);
    let resting = tenant.job_manifest("embed", &format!("{SMALL_SHARDS}  suspend: true\n"));
    cluster.apply(&running);
    tenant.wait_until_at_work("embed", 120);
    // One call that patches the job by each of its documents.
    cluster.apply(&format!("{resting}---\n{running}---\n").repeat(50));
    cluster.apply(&resting);
    tenant.wait_for_reason("embed", "Suspended", 30);
    cluster.wait(tenant.namespace(), 90, "its pods are gone", || {
        cluster
            .list(tenant.namespace(), "pods", SELECTOR)
            .is_empty()
            .then_some(())
    });
    tenant.assert_at_work("embed");
    cluster.apply(&running);
    tenant.check_succeeded("embed", &rows, 300);
}

#[test]
fn helm_waits_for_a_service_and_for_the_end_of_a_job() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "waited");
    let rows = tenant.rows(2_000);
    let chart = tempfile::tempdir().unwrap();
    let templates = chart.path().join("templates");
    std::fs::create_dir(&templates).unwrap();
    let about = "apiVersion: v2\nname: texts\nversion: 1.0.0\n";
    std::fs::write(chart.path().join("Chart.yaml"), about).unwrap();
    let service = tenant.service_manifest("");
    std::fs::write(templates.join("service.yaml"), service).unwrap();
    let job = tenant.job_manifest("embed", "");
    std::fs::write(templates.join("job.yaml"), job).unwrap();
    let mut helm = cluster.inside("helm");
    helm.args(["install", "texts"]).arg(chart.path());
    helm.args(["-n", tenant.namespace(), "--wait", "--timeout", "180s"]);
    let installed = helm.output().unwrap();
    let said = String::from_utf8_lossy(&installed.stderr);
    assert!(installed.status.success(), "{said}");
    let ended = tenant.condition("embed", "Succeeded").unwrap();
    assert_eq!(ended, ("True".to_owned(), "Completed".to_owned()));
    tenant.check_succeeded("embed", &rows, 5);
}

#[test]
fn an_incremental_job_asks_about_new_rows_alone() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "changes");
    let rows = tenant.rows(200);
    tenant.service("");
    cluster.apply(&tenant.job_manifest("first", ""));
    tenant.check_succeeded("first", &rows, 120);
    let rows = tenant.rows(220);
    let from = "  incremental: {from: 's3://bucket/first'}\n";
    cluster.apply(&tenant.job_manifest("second", from));
    tenant.check_succeeded("second", &rows, 120);
    let difference = &tenant.manifest("second")["difference"];
    let counted = ["unchanged", "fresh", "gone"].map(|it| difference[it].as_u64());
    assert_eq!(counted, [Some(200), Some(20), Some(0)]);
    let tokens = |job: &str| tenant.manifest(job)["totals"]["tokens"].as_u64().unwrap();
    assert!(tokens("second") < tokens("first") / 5);
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

#[test]
fn nothing_is_written_once_everything_is_done() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "quiet");
    let rows = tenant.rows(200);
    tenant.service("");
    cluster.apply(&tenant.job_manifest("embed", ""));
    tenant.check_succeeded("embed", &rows, 120);
    let versions = || {
        let kinds = "batchjobs,inferenceservices,deployments,jobs,pods,services,configmaps,secrets,\
                     poddisruptionbudgets,networkpolicies,events";
        let columns =
            "custom-columns=KIND:.kind,NAME:.metadata.name,VERSION:.metadata.resourceVersion";
        cluster.kubectl(&["-n", tenant.namespace(), "get", kinds, "-o", columns])
    };
    // What the cluster itself still does about the pods that ended takes a moment.
    std::thread::sleep(std::time::Duration::from_secs(10));
    let before = versions();
    std::thread::sleep(std::time::Duration::from_secs(60));
    assert_eq!(versions(), before);
}

#[test]
fn pods_get_the_gpus_they_ask_for_and_a_service_that_asks_for_too_many_says_so() {
    let Some(cluster) = turn_at_own("it gives the node GPUs that it has not") else {
        return;
    };
    let tenant = Tenant::new(&cluster, "gpus");
    let patch = r#"[{"op":"add","path":"/status/capacity/nvidia.com~1gpu","value":"8"}]"#;
    let node = cluster.kubectl(&["get", "nodes", "-o", "name"]);
    cluster.kubectl(&[
        "patch",
        node.trim(),
        "--subresource=status",
        "--type=json",
        "-p",
        patch,
    ]);
    let with_gpus = |count: u32| {
        tenant.service(&format!(
            "  template: {{resources: {{limits: {{nvidia.com/gpu: '{count}'}}}}}}\n"
        ));
    };
    let condition = || {
        let service = cluster.get(tenant.namespace(), "inferenceservice/minilm")?;
        let conditions = service["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|it| it["type"] == "Ready")
    };
    with_gpus(9);
    cluster.wait(tenant.namespace(), 60, "the reason is said", || {
        let message = condition()?["message"].as_str()?.to_owned();
        message
            .contains("Insufficient nvidia.com/gpu")
            .then_some(())
    });
    with_gpus(2);
    cluster.wait(tenant.namespace(), 120, "the service serves", || {
        (condition()?["reason"] == "Serving").then_some(())
    });
    let pods = cluster.list(tenant.namespace(), "pods", SELECTOR);
    assert_eq!(
        (gpus_of(&pods[0], "limits"), gpus_of(&pods[0], "requests")),
        (2, 2)
    );

    work_off_where_four_of_five_pods_fit(&tenant);
}

/// GPUs that the first container of a pod asks for, in its `requests` or `limits`.
fn gpus_of(pod: &Value, kind: &str) -> u32 {
    let gpus = &pod["spec"]["containers"][0]["resources"][kind]["nvidia.com/gpu"];
    gpus.as_str().map_or(0, |gpus| gpus.parse().unwrap())
}

/// Each pod takes two of eight GPUs: the fifth that the backlog asks for does not fit, and the job gets on.
fn work_off_where_four_of_five_pods_fit(tenant: &Tenant) {
    let cluster = tenant.cluster();
    let rows = tenant.rows(3_000);
    tenant.service(
        "  template: {resources: {limits: {nvidia.com/gpu: '2'}}}\n  \
         autoscaling: {minReplicas: 1, maxReplicas: 5}\n",
    );
    cluster.apply(&tenant.job_manifest("embed", "  sharding: {targetBytes: 8192}\n"));
    let mut most = 0;
    cluster.wait(tenant.namespace(), 300, "the job ends", || {
        let pods = cluster.list(tenant.namespace(), "pods", SELECTOR);
        let placed = pods
            .iter()
            .filter(|pod| pod["spec"]["nodeName"].is_string());
        most = most.max(placed.map(|pod| gpus_of(pod, "requests")).sum());
        assert!(most <= 8, "{most} GPUs of 8 are given away");
        let live = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let live = live.count();
        assert!(live <= 5, "{live} pods, and no more than 5 are asked for");
        let (_, reason) = tenant.condition("embed", "Succeeded")?;
        (reason == "Completed").then_some(())
    });
    tenant.check_succeeded("embed", &rows, 10);
    assert_eq!(most, 8, "as many pods as there is room for");
}
