//! Jobs that end before their time, go on elsewhere, are run again, or bring what they need.

use std::process::Stdio;

use millrace_e2e::history::outcomes;
use millrace_e2e::process::binary;
use serde_json::Value;

use crate::tenant::{ROWS_AT_WORK, SMALL_SHARDS, Tenant, UNHURRIED};
use crate::turn::turn;

/// Rows of a job that are no JSON: more than its status names.
const BAD_ROWS: usize = 25;

#[test]
fn a_cancelled_job_names_what_is_not_done_and_another_one_goes_on_from_there() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "cancels");
    let rows = tenant.rows(ROWS_AT_WORK);
    tenant.service(UNHURRIED);
    let job = tenant.job_manifest("embed", SMALL_SHARDS);
    cluster.apply(&job);
    tenant.wait_until_at_work("embed", 120);
    cluster.apply(&(job.clone() + "  cancel: true\n"));
    tenant.wait_for_reason("embed", "Cancelled", 60);
    assert_eq!(tenant.condition("embed", "Stalled").unwrap().0, "True");
    let named = tenant.manifest("embed");
    assert_eq!(named["complete"], false);
    assert!(!named["failedShards"].as_array().unwrap().is_empty());
    assert!(!named["parts"].as_array().unwrap().is_empty());
    let taken_back = cluster.try_apply(&(job + "  cancel: false\n"));
    assert!(!taken_back.status.success());
    let said = String::from_utf8_lossy(&taken_back.stderr).into_owned();
    assert!(said.contains("cancel cannot be taken back"), "{said}");
    // The output is the first job's.
    let other = tenant.job_manifest("other", SMALL_SHARDS);
    cluster.apply(&other.replace("s3://bucket/other", "s3://bucket/embed"));
    tenant.wait_for_reason("other", "Completed", 200);
    tenant.check_rows("embed", &rows);
}

#[test]
fn rows_that_failed_are_run_again_in_a_run_of_their_own() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "reruns");
    let mut rows = tenant.rows(200);
    for row in 0..BAD_ROWS {
        rows.extend(format!("{{\"id\": \"bad-{row}\", \"text\": \"hush\n").as_bytes());
    }
    std::fs::write(tenant.bucket().join("rows.jsonl"), &rows).unwrap();
    tenant.service("");
    let job = tenant.job_manifest("embed", "");
    cluster.apply(&job);
    tenant.wait_for_reason("embed", "Completed", 120);
    check_samples(&tenant.job("embed")["status"]["sampleErrors"]);
    let columns = tenant.columns("batchjob/embed");
    let failed = columns.iter().find(|(name, _)| name == "FAILED").unwrap();
    assert_eq!(failed.1, BAD_ROWS.to_string());
    cluster.apply(&(job + "  rerunFailed: 1\n"));
    cluster.wait(tenant.namespace(), 120, "the second run is over", || {
        let status = tenant.job("embed")["status"].clone();
        let (_, reason) = tenant.condition("embed", "Succeeded")?;
        (status["run"] == 2 && reason == "Completed").then_some(())
    });
    let status = tenant.job("embed")["status"].clone();
    // The rows are as bad as before: they fail once more, and are counted once.
    assert_eq!(status["rows"]["succeeded"], 200);
    assert_eq!(status["rows"]["failed"], BAD_ROWS);
    assert_eq!(status["shards"]["total"], 1);
    assert_eq!(tenant.manifest("embed")["run"], 2);
    let plan = "embed/_millrace/runs/0002/plan.json";
    assert!(tenant.bucket().join(plan).exists());
}

/// Checks that a status names some of the bad rows, and nothing of what stands in them.
fn check_samples(samples: &Value) {
    let samples = samples.as_array().expect("rows that failed");
    // As many as a termination message has room for.
    assert!((5..=20).contains(&samples.len()), "{samples:#?}");
    for sample in samples {
        let position = sample["position"].as_str().unwrap();
        assert!(position.starts_with("s3://bucket/rows.jsonl@"), "{sample}");
        assert_eq!(sample["code"], "invalid_json", "{sample}");
        assert!(!sample.to_string().contains("hush"), "{sample}");
    }
}

#[test]
fn a_job_brings_its_rows_and_its_service_and_both_go_with_it() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "brings");
    let namespace = tenant.namespace();
    cluster.apply(&format!(
        "apiVersion: millrace.dev/v1alpha1\nkind: BatchJob\n\
         metadata: {{name: embed, namespace: {namespace}}}\nspec:\n  \
         serviceTemplate:\n    models:\n      - name: minilm\n        task: Embedding\n        \
         source: {{uri: 's3://bucket/models/minilm'}}\n  \
         credentials: {{name: bucket}}\n  input: {{inline: [one text, another text]}}\n  \
         output: {{uri: 's3://bucket/embed'}}\n  ttlSecondsAfterFinished: 5\n"
    ));
    tenant.wait_for_reason("embed", "Completed", 120);
    assert_eq!(tenant.job("embed")["status"]["rows"]["succeeded"], 2);
    cluster.wait(namespace, 60, "the job and its service are gone", || {
        let jobs = cluster.list(namespace, "batchjobs", "");
        let services = cluster.list(namespace, "inferenceservices", "");
        (jobs.is_empty() && services.is_empty()).then_some(())
    });
    assert_eq!(outcomes(&tenant.bucket().join("embed")).len(), 2);
}

#[test]
fn a_job_past_its_deadline_ends_with_what_is_done() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "deadline");
    tenant.rows(6_000);
    tenant.service(UNHURRIED);
    let settings = format!("{SMALL_SHARDS}  activeDeadlineSeconds: 12\n");
    cluster.apply(&tenant.job_manifest("embed", &settings));
    tenant.wait_for_reason("embed", "DeadlineExceeded", 90);
    assert!(tenant.job("embed")["status"]["completionTime"].is_string());
    let named = tenant.manifest("embed");
    assert_eq!(named["complete"], false);
    let given_up = named["failedShards"].as_array().unwrap();
    let done = named["parts"].as_array().unwrap().len();
    assert_eq!(done + given_up.len(), tenant.shards_planned("embed"));
    for shard in given_up {
        let error = shard["error"].as_str().unwrap_or_default();
        assert!(error.starts_with("spec.activeDeadlineSeconds"), "{shard}");
    }
}

#[test]
fn a_job_begun_by_a_local_run_goes_on_in_the_cluster_from_the_same_output() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "moves");
    let rows = tenant.rows(ROWS_AT_WORK);
    let job = tenant.job_manifest("embed", SMALL_SHARDS);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yaml");
    std::fs::write(&file, format!("{job}---\n{}", tenant.service_manifest(""))).unwrap();
    let mut run = cluster.inside(binary("millrace").to_str().unwrap());
    run.args(["run", "-f"])
        .arg(&file)
        .envs(tenant.store_variables())
        .env("MILLRACE_MODEL_CACHE", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut run = run.spawn().unwrap();
    let commits = tenant.bucket().join("embed/_millrace/runs/0001/commits");
    let committed = || std::fs::read_dir(&commits).map_or(0, Iterator::count);
    cluster.wait(tenant.namespace(), 90, "the local run commits", || {
        (committed() >= 3).then_some(())
    });
    run.kill().unwrap();
    run.wait().unwrap();
    let before = committed();
    tenant.service("");
    cluster.apply(&job);
    tenant.check_succeeded("embed", &rows, 200);
    assert!(committed() > before, "the cluster did the rest");
    let shards = tenant.job("embed")["status"]["shards"]["committed"].clone();
    assert_eq!(shards, committed());
}
