//! Services that are not the usual one: with a foreign server, with a cache of models, with pods to spare.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::api::{Api, KEY};
use crate::tenant::{SELECTOR, Tenant, copy_model};
use crate::turn::{turn, turn_at_own};

/// Farthest that two servers' vectors of one text may be apart in any place: their batches differ.
const TOLERANCE: f64 = 1e-4;

/// A server that is told nothing of the service it stands in, with its model on a volume: for the worker
/// it is somebody else's.
const FOREIGN: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: foreign, namespace: NAMESPACE}
data:
  service.yaml: |
    apiVersion: millrace.dev/v1alpha1
    kind: InferenceService
    metadata: {name: foreign}
    spec:
      models:
        - {name: any, task: Embedding, source: {uri: /models/minilm}}
---
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: foreign, namespace: NAMESPACE}
spec:
  runtime:
    image: IMAGE
    args: [--service, /settings/service.yaml, --listen, '0.0.0.0:3000']
    port: 3000
    protocol: TEI
    models: [{name: minilm, task: Embedding}]
  secrets: [{name: bucket}]
  template:
    volumes:
      - {name: settings, mountPath: /settings, readOnly: true, configMap: {name: foreign}}
      - {name: models, mountPath: /models, readOnly: true, persistentVolumeClaim: {claimName: models}}
";

#[test]
fn a_server_image_of_the_users_works_a_job_off_beside_the_same_worker() {
    let Some(cluster) = turn_at_own("it mounts a folder of this machine") else {
        return;
    };
    let tenant = Tenant::new(&cluster, "foreign");
    let rows = tenant.rows(300);
    tenant.claim_volume("models");
    copy_model(&tenant.volume("models").join("minilm"));
    let foreign = FOREIGN.replace("NAMESPACE", tenant.namespace());
    cluster.apply(&foreign.replace("IMAGE", &cluster.image("inference-server")));
    tenant.service("");
    let job = tenant.job_manifest("theirs", "");
    cluster.apply(&job.replace("{name: minilm}", "{name: foreign}"));
    cluster.apply(&tenant.job_manifest("ours", ""));
    let theirs = tenant.check_succeeded("theirs", &rows, 180);
    let ours = tenant.check_succeeded("ours", &rows, 120);
    for (row, outcome) in &ours {
        let vectors = [outcome, &theirs[row]].map(|outcome| vector(outcome.as_ref().unwrap()));
        let [ours, theirs] = &vectors;
        assert_eq!(ours.len(), theirs.len(), "{row:?}");
        let farthest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
        let farthest = farthest.fold(0.0, f64::max);
        assert!(farthest < TOLERANCE, "{row:?}: {farthest}");
    }
}

/// The only vector in a result.
fn vector(result: &str) -> Vec<f64> {
    fn find(value: &Value) -> Option<Vec<f64>> {
        match value {
            Value::Array(items) => items.iter().map(Value::as_f64).collect(),
            Value::Object(fields) => fields.values().find_map(find),
            _ => None,
        }
    }
    find(&serde_json::from_str(result).unwrap()).expect("a vector")
}

/// Where a test's models are kept, as lines of a service's spec, and the folder on this machine.
fn in_a_claimed_volume(tenant: &Tenant<'_>) -> (String, std::path::PathBuf) {
    tenant.claim_volume("models");
    let claim = "  modelCache: {persistentVolumeClaim: {claimName: models}}\n";
    (claim.to_owned(), tenant.volume("models"))
}

#[test]
fn a_model_that_is_in_the_cache_is_not_fetched_again() {
    let Some(cluster) = turn_at_own("it mounts a folder of this machine") else {
        return;
    };
    let tenant = Tenant::new(&cluster, "cache");
    check_fetched_once(&tenant, in_a_claimed_volume);
}

#[test]
fn a_model_that_is_in_a_folder_of_the_node_is_not_fetched_again() {
    let Some(cluster) = turn_at_own("it mounts a folder of this machine") else {
        return;
    };
    let tenant = Tenant::new(&cluster, "node-cache");
    let admits = "pod-security.kubernetes.io/enforce=privileged";
    let namespace = tenant.namespace();
    cluster.kubectl(&["label", "--overwrite", "namespace", namespace, admits]);
    check_fetched_once(&tenant, |tenant| {
        let folder = tenant.open_folder("models");
        (
            format!("  modelCache: {{hostPath: {}}}\n", folder.display()),
            folder,
        )
    });
}

/// Works one job off with a cache that `keep` sets up, and another one once the model's source is gone.
fn check_fetched_once<'a>(
    tenant: &Tenant<'a>,
    keep: impl Fn(&Tenant<'a>) -> (String, std::path::PathBuf),
) {
    let cluster = tenant.cluster();
    let rows = tenant.rows(200);
    tenant.service("");
    cluster.apply(&tenant.job_manifest("first", ""));
    tenant.check_succeeded("first", &rows, 120);
    let manifest = tenant.manifest("first");
    let digest = manifest["models"][0]["digest"].as_str().unwrap();

    let (settings, folder) = keep(tenant);
    let cached = tenant.service_manifest(&settings).replace(
        "models/minilm'}",
        &format!("models/minilm', digest: '{digest}'}}"),
    );
    cluster.apply(&cached);
    let folder = folder.join(digest.replace(':', "-"));
    cluster.wait(tenant.namespace(), 120, "the model is in the cache", || {
        folder.join("model.safetensors").exists().then_some(())
    });
    tenant.wait_until_serving(120);
    std::fs::remove_dir_all(tenant.bucket().join("models")).unwrap();
    cluster.kubectl(&["-n", tenant.namespace(), "delete", "pod", "-l", SELECTOR]);
    cluster.apply(&tenant.job_manifest("second", ""));
    tenant.check_succeeded("second", &rows, 120);
}

/// How long one call takes unless the API is held: long enough to be seen in flight.
const CALL_MS: u64 = 10_000;

/// By what a ReplicaSet chooses the pods that go: those with the least first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A service whose pods wait for an API, and a job of one row.
const WAITING: &str = "
apiVersion: v1
kind: Secret
metadata: {name: api, namespace: NAMESPACE}
stringData: {apiKey: KEY}
---
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: minilm, namespace: NAMESPACE}
spec:
  autoscaling: {minReplicas: MIN, maxReplicas: 3, idleSeconds: 2}
  secrets: [{name: bucket}]
  remote:
    baseUrl: http://ADDRESS/v1
    api: Chat
    model: m
    apiKeySecretRef: {name: api}
    timeout: 180s
";

#[test]
fn in_the_tail_pods_are_released_one_by_one_and_the_one_at_work_stays() {
    let Some(cluster) = turn() else { return };
    let tenant = Tenant::new(&cluster, "tail");
    let namespace = tenant.namespace();
    let api = Api::start(&cluster, CALL_MS);
    let waiting = WAITING.replace("NAMESPACE", namespace);
    let waiting = waiting.replace("ADDRESS", api.address());
    let waiting = waiting.replace("KEY", KEY);
    cluster.apply(&waiting.replace("MIN", "3"));
    cluster.wait(namespace, 120, "three pods serve", || {
        let deployment = cluster.get(namespace, "deployment/minilm-inference")?;
        (deployment["status"]["readyReplicas"] == 3).then_some(())
    });
    let rows = tenant.rows(1);
    let steps = "  steps: [{name: said, model: m, prompt: {template: '{{ text }}'}}]\n";
    cluster.apply(&tenant.job_manifest("ask", steps));
    cluster.wait(namespace, 60, "a pod holds the shard", || {
        (!api.record().calls.is_empty()).then_some(())
    });
    let held = api.hold();
    let names = |is_meant: &dyn Fn(&Value) -> bool| -> BTreeSet<String> {
        let pods = cluster.list(namespace, "pods", SELECTOR);
        let meant = pods.iter().filter(|pod| is_meant(&pod["metadata"]));
        let names = meant.map(|pod| pod["metadata"]["name"].as_str());
        names.map(|name| name.unwrap().to_owned()).collect()
    };
    let at_work = cluster.wait(namespace, 60, "the pod at work is to go last", || {
        let names = names(&|metadata| metadata["annotations"][DELETION_COST] == "1");
        Some(names).filter(|names| names.len() == 1)
    });
    cluster.apply(&waiting.replace("MIN", "0"));
    let last = cluster.wait(namespace, 60, "one pod is left", || {
        Some(names(&|_| true)).filter(|names| names.len() == 1)
    });
    assert_eq!(last, at_work);
    let (_, reason) = tenant.condition("ask", "Succeeded").unwrap();
    assert_eq!(reason, "Running", "the pods went while there was work");
    let said = "jsonpath={range .items[*]}{.message}{'\\n'}{end}";
    let scaled = "--field-selector=reason=ScalingReplicaSet";
    let said = cluster.kubectl(&["-n", namespace, "get", "events", scaled, "-o", said]);
    for step in ["from 3 to 2", "from 2 to 1"] {
        let is_said = said.lines().any(|line| line.ends_with(step));
        assert!(is_said, "{step}: {said}");
    }
    assert_eq!(names(&|_| true), last);
    drop(held);
    tenant.check_succeeded("ask", &rows, 180);
    assert_eq!(api.record().calls.len(), 1, "nobody had to ask again");
}
