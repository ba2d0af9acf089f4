//! Jobs that ask an API elsewhere, by pods that hold workers alone. The API is the stand-in, which runs
//! on the node.

use std::net::SocketAddr;
use std::process::{Child, Stdio};

use millrace_e2e::process::binary;
use millrace_stand_in::Record;
use serde_json::Value;

use crate::cluster::{Cluster, turn};
use crate::tenant::Tenant;

/// Rows of the job.
const ROWS: usize = 400;

/// Calls that all pods may have in flight together.
const CONCURRENCY: u64 = 4;

/// Port of the stand-in.
const PORT: u16 = 8_090;

/// The key of the API, which must stand in no log and no object but its Secret.
const KEY: &str = "sk-not-to-be-seen";

/// A stand-in on the node; killed when dropped.
struct Api<'a> {
    cluster: &'a Cluster,
    process: Child,
    address: String,
}

impl<'a> Api<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let address = SocketAddr::new(cluster.address(), PORT).to_string();
        let mut command = cluster.tied(binary("millrace-stand-in").to_str().unwrap());
        command
            .args(["--listen", &address, "--latency-ms", "100"])
            .args(["--api-key", KEY]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self {
            process: command.spawn().expect("the stand-in starts"),
            cluster,
            address,
        }
    }

    fn record(&self) -> Record {
        let read = "import sys, urllib.request; \
                    sys.stdout.write(urllib.request.urlopen(sys.argv[1]).read().decode())";
        let mut ask = self.cluster.inside("python3");
        ask.args(["-c", read, &format!("http://{}/record", self.address)]);
        serde_json::from_slice(&ask.output().unwrap().stdout).unwrap()
    }
}

impl Drop for Api<'_> {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

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
    let api = Api::start(&cluster);
    let namespace = tenant.namespace();
    cluster.apply(&manifests(namespace, &api.address));
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
