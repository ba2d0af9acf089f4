//! Requests to a service while its pods change.

use std::io::Read;
use std::process::Stdio;

use crate::tenant::{SELECTOR, Tenant};
use crate::turn::turn;

/// A client that asks the URL that is its argument, on a new connection each time, until its standard
/// input ends. It prints how many answers it got, and what went wrong first.
const CLIENT: &str = r#"
import json, sys, threading, urllib.request
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
answers, failure = 0, ""
while not stop.is_set() and not failure:
    body = json.dumps({"inputs": "a mill by the water"}).encode()
    ask = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(ask, timeout=20) as answer:
            assert len(json.load(answer)[0]) == 384
        answers += 1
    except Exception as error:
        failure = repr(error)
print(answers, failure)
"#;

#[test]
fn a_rolling_update_drops_no_request() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "rollout");
    tenant.service("  autoscaling: {minReplicas: 1, maxReplicas: 1}\n");
    tenant.wait_until_serving(120);
    let namespace = tenant.namespace();
    let address = "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}";
    let service = "service/minilm-inference";
    let address = cluster.kubectl(&["-n", namespace, "get", service, "-o", address]);
    let mut client = cluster.inside("python3");
    client.args(["-c", CLIENT, &format!("http://{address}/embed")]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = client.spawn().expect("python3 starts");

    let deployment = "deployment/minilm-inference";
    cluster.kubectl(&["-n", namespace, "rollout", "restart", deployment]);
    let timeout = "--timeout=120s";
    cluster.kubectl(&["-n", namespace, "rollout", "status", deployment, timeout]);
    cluster.wait(namespace, 120, "the pod before is gone", || {
        (cluster.list(namespace, "pods", SELECTOR).len() == 1).then_some(())
    });

    drop(client.stdin.take());
    let mut said = String::new();
    let mut stdout = client.stdout.take().expect("it is piped");
    stdout.read_to_string(&mut said).unwrap();
    client.wait().unwrap();
    let (answers, failure) = said.trim_end_matches('\n').split_once(' ').unwrap();
    let answers: u64 = answers.parse().unwrap();
    assert!(failure.is_empty(), "after {answers} answers: {failure}");
    assert!(answers > 50, "{answers} answers tell little");
}
