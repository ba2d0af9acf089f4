//! Jobs that ask an API elsewhere, by pods that hold workers alone.

use serde_json::Value;

use crate::api::{Api, KEY};
use crate::tenant::Tenant;
use crate::turn::turn;

/// Rows of the job.
const ROWS: usize = 400;

/// Calls that all pods may have in flight together.
const CONCURRENCY: u64 = 4;

fn manifests(namespace: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: api, namespace: {namespace}}}\n\
         stringData: {{apiKey: {KEY}}}\n---\n\
         apiVersion: millrace.dev/v1alpha1\nkind: InferenceService\n\
         metadata: {{name: api, namespace: {namespace}}}\nspec:\n  \
         autoscaling: {{minReplicas: 2, maxReplicas: 2}}\n  secrets: [{{name: bucket}}]\n  remote:\n    \
         baseUrl: http://{address}/v1\n    api: Chat\n    model: m\n    \
         apiKeySecretRef: {{name: api}}\n    rowsPerCall: 5\n    \
         limits: {{concurrency: {CONCURRENCY}}}\n    \
         pricing: {{inputPerMillionTokens: '1', outputPerMillionTokens: '2'}}\n---\n\
         apiVersion: millrace.dev/v1alpha1\nkind: BatchJob\n\
         metadata: {{name: ask, namespace: {namespace}}}\nspec:\n  \
         serviceRef: {{name: api}}\n  credentials: {{name: bucket}}\n  \
         steps: [{{name: said, model: m, prompt: {{template: '{{{{ text }}}}'}}}}]\n  \
         input: {{uris: ['s3://bucket/rows.jsonl'], idField: id, textField: text}}\n  \
         output: {{uri: 's3://bucket/ask'}}\n  sharding: {{targetBytes: 4096}}\n"
    )
}

#[test]
fn pods_share_the_limits_of_an_api_and_tell_what_it_costs() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "remote");
    let rows = tenant.rows(ROWS);
    let api = Api::start(&cluster, 100);
    let namespace = tenant.namespace();
    cluster.apply(&manifests(namespace, api.address()));
    tenant.check_succeeded("ask", &rows, 180);

    let record = api.record();
    assert_eq!(record.with_status(200).count(), record.calls.len());
    let asked: usize = record.calls.iter().map(|call| call.rows.len()).sum();
    assert_eq!(asked, ROWS, "each row is asked once");
    assert!(record.calls.iter().all(|call| call.rows.len() <= 5));
    let in_flight = record.peak().in_flight;
    assert!((2..=CONCURRENCY).contains(&in_flight), "{in_flight} calls");

    let status = tenant.job("ask")["status"].clone();
    let total: f64 = status["cost"]["total"].as_str().unwrap().parse().unwrap();
    // An answer's tokens cost twice as much as those of a prompt.
    let tokens = record.calls.iter().map(|it| it.tokens + it.answer_tokens);
    let price = tokens.sum::<u64>() as f64 / 1e6;
    assert!((total - price).abs() < 1e-9, "{total} instead of {price}");

    let seen = cluster.kubectl(&["-n", namespace, "get", "all,events,batchjobs", "-o", "yaml"]);
    let selector = "app.kubernetes.io/name=millrace";
    let logs = [
        "-n",
        namespace,
        "logs",
        "-l",
        selector,
        "--all-containers",
        "--tail=-1",
    ];
    let logs = cluster.kubectl(&logs);
    let first: Value =
        serde_json::from_slice(rows.split(|it| *it == b'\n').next().unwrap()).unwrap();
    let text = first["text"].as_str().unwrap();
    for hidden in [KEY, text] {
        let is_told = seen.contains(hidden) || logs.contains(hidden);
        assert!(!is_told, "{hidden} is told");
    }
}
