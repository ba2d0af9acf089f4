//! Where results go besides the output, and who is told: a table, a receiver, a reader.

use std::io::Read;
use std::process::Stdio;

use millrace_e2e::postgres_server::PostgresServer;
use serde_json::Value;

use crate::tenant::{Tenant, secret};
use crate::turn::turn_at_own;

/// Prints the first event that it is told at the address that is its argument, and ends.
const RECEIVER: &str = r#"
import http.server, sys
class Hear(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        print(self.headers["webhook-signature"], body.decode(), flush=True)
    def log_message(self, *ignored): pass
server = http.server.HTTPServer((sys.argv[1], 0), Hear)
print(server.server_port, flush=True)
server.handle_request()
"#;

fn secrets(namespace: &str, postgres: &str) -> String {
    secret(namespace, "table", "url", postgres)
        + &secret(namespace, "hook", "secret", "a secret of the hook")
        + &secret(namespace, "readers", "token", "a-token-of-readers")
}

#[test]
fn results_are_in_a_table_and_with_a_reader_and_a_receiver_is_told() {
    let Some(cluster) = turn_at_own("its pods reach a table on this machine") else {
        return;
    };
    let tenant = Tenant::new(&cluster, "sinks");
    let namespace = tenant.namespace();
    // The second half says the same as the first one.
    let rows = tenant.rows(1_000);
    let address = cluster.address();
    let postgres = cluster
        .network()
        .within(|| PostgresServer::start_at(address));
    let mut receiver = cluster.tied("python3");
    receiver.args(["-u", "-c", RECEIVER, &address.to_string()]);
    let mut receiver = receiver.stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = receiver.stdout.take().expect("it is piped");
    let mut port = String::new();
    while !port.ends_with('\n') {
        let mut byte = [0];
        heard.read_exact(&mut byte).unwrap();
        port.push(byte[0].into());
    }

    tenant.service("");
    cluster.apply(&secrets(namespace, &postgres.url()));
    let settings = format!(
        "  dedup: {{}}\n  notify: {{url: 'http://{address}:{}/hook', secretRef: {{name: hook}}}}\n  \
         reader: {{secretRef: {{name: readers}}}}\n",
        port.trim()
    );
    let output = "output: {uri: 's3://bucket/embed'}";
    let with_table =
        "output: {uri: 's3://bucket/embed', postgres: {table: texts, secretRef: {name: table}}}";
    let job = tenant.job_manifest("embed", &settings);
    cluster.apply(&job.replace(output, with_table));
    tenant.check_succeeded("embed", &rows, 240);

    assert_eq!(tenant.manifest("embed")["dedup"]["duplicates"], 500);
    let loaded: i64 = cluster.network().within(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = postgres.connect().await;
            let count = "select count(distinct id) from texts where array_length(minilm, 1) = 384";
            client.query_one(count, &[]).await.unwrap().get(0)
        })
    });
    assert_eq!(loaded, 1_000);

    let mut event = String::new();
    heard.read_to_string(&mut event).unwrap();
    receiver.wait().unwrap();
    let (signature, event) = event.split_once(' ').unwrap();
    assert!(signature.starts_with("v1,"), "{signature}");
    let event: Value = serde_json::from_str(event).unwrap();
    assert_eq!(event["type"], "dev.millrace.batchjob.succeeded");
    assert_eq!(event["data"]["counts"]["rows"]["succeeded"], 1_000);

    let reader = [
        "-n",
        namespace,
        "rollout",
        "status",
        "deployment/embed-reader",
    ];
    cluster.kubectl(&[&reader[..], &["--timeout=60s"]].concat());
    let service = ["-n", namespace, "get", "service/embed-reader"];
    let service = [&service[..], &["-o", "jsonpath={.spec.clusterIP}"]].concat();
    let service = cluster.kubectl(&service);
    let url = format!("http://{service}/api/v1/jobs/embed/results?limit=10&offset=990");
    let lines = cluster.ask(&url, "a-token-of-readers");
    assert!(
        lines.status.success(),
        "{}",
        String::from_utf8_lossy(&lines.stderr)
    );
    assert_eq!(String::from_utf8(lines.stdout).unwrap().lines().count(), 10);
    assert!(!cluster.ask(&url, "another").status.success());
}
