//! A namespace with a bucket, a service and jobs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use millrace_e2e::files::{copy, repository};
use millrace_e2e::history::{Outcomes, assert_every_row_once, outcomes};
use serde_json::Value;

use crate::cluster::{Cluster, OF_TESTS};
use crate::store::Store;

/// Selects the pods of the service.
pub const SELECTOR: &str = "millrace.dev/inference-service=minilm";

/// Rows of a job that is long enough to be disturbed, by a service that is [`UNHURRIED`].
pub const ROWS_AT_WORK: usize = 2_000;

/// A line of a job's spec that cuts it into shards of some fifty rows.
pub const SMALL_SHARDS: &str = "  sharding: {targetBytes: 4096}\n";

/// A line of a service's spec by which each pod computes on one core: it leaves the other to whatever is
/// tested beside it, and takes its time.
pub const UNHURRIED: &str = "  template: {resources: {limits: {cpu: '1'}}}\n";

/// A namespace with an S3 server of its own; both are gone when dropped.
pub struct Tenant<'a> {
    cluster: &'a Cluster,
    namespace: String,
    store: Store<'a>,
}

impl<'a> Tenant<'a> {
    /// Makes the namespace, the bucket with the model, and the Secret with the bucket's keys.
    pub fn new(cluster: &'a Cluster, name: &str) -> Self {
        let namespace = format!("{name}-{}", std::process::id());
        let store = Store::start(cluster, &namespace);
        copy_model(&store.bucket().join("models/minilm"));
        let keys = store
            .variables()
            .map(|(name, value)| format!("  {name}: '{value}'\n"));
        let keys = keys.concat();
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  \
             labels: {{pod-security.kubernetes.io/enforce: restricted, {OF_TESTS}: 'true'}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: bucket, namespace: {namespace}}}\n\
             stringData:\n{keys}"
        ));
        Self {
            cluster,
            namespace,
            store,
        }
    }

    /// One with a job of many shards at work on one pod, and the rows of the job.
    pub fn at_work(cluster: &'a Cluster, name: &str) -> (Self, Vec<u8>) {
        Self::at_work_on(cluster, name, ROWS_AT_WORK)
    }

    /// The same with a job of so many rows.
    pub fn at_work_on(cluster: &'a Cluster, name: &str, rows: usize) -> (Self, Vec<u8>) {
        let tenant = Self::new(cluster, name);
        let rows = tenant.rows(rows);
        tenant.service(UNHURRIED);
        cluster.apply(&tenant.job_manifest("embed", SMALL_SHARDS));
        tenant.wait_until_at_work("embed", 120);
        (tenant, rows)
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The variables by which the bucket is read from outside of the pods.
    pub fn store_variables(&self) -> [(&'static str, String); 5] {
        self.store.variables()
    }

    /// Puts a server that answers 503 to everything in the place of the store for a while.
    pub fn refuse_for(&mut self, seconds: u64) {
        self.store.refuse_for(seconds);
    }

    /// The folder that holds the bucket's objects as files.
    pub fn bucket(&self) -> PathBuf {
        self.store.bucket()
    }

    /// Applies a service with MiniLM; `settings` are further lines of its spec.
    pub fn service(&self, settings: &str) {
        self.cluster.apply(&self.service_manifest(settings));
    }

    /// The manifest of that service.
    pub fn service_manifest(&self, settings: &str) -> String {
        let namespace = &self.namespace;
        format!(
            "apiVersion: millrace.dev/v1alpha1\nkind: InferenceService\n\
             metadata: {{name: minilm, namespace: {namespace}}}\nspec:\n  models:\n    \
             - name: minilm\n      task: Embedding\n      source: {{uri: 's3://bucket/models/minilm'}}\n  \
             secrets: [{{name: bucket}}]\n{settings}"
        )
    }

    /// The manifest of a job over `rows.jsonl`; `settings` are further lines of its spec.
    pub fn job_manifest(&self, name: &str, settings: &str) -> String {
        let namespace = &self.namespace;
        format!(
            "apiVersion: millrace.dev/v1alpha1\nkind: BatchJob\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             serviceRef: {{name: minilm}}\n  credentials: {{name: bucket}}\n  \
             input: {{uris: ['s3://bucket/rows.jsonl'], idField: id}}\n  \
             output: {{uri: 's3://bucket/{name}'}}\n{settings}"
        )
    }

    /// Makes a volume that everybody can write to, and claims it.
    pub fn claim_volume(&self, name: &str) {
        let (namespace, folder) = (&self.namespace, self.open_folder(name));
        let path = folder.display();
        self.cluster.apply(&format!(
            "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}-{namespace}}}\nspec:\n  \
             capacity: {{storage: 1Gi}}\n  accessModes: [ReadWriteMany]\n  storageClassName: ''\n  \
             hostPath: {{path: {path}}}\n  \
             claimRef: {{name: {name}, namespace: {namespace}}}\n---\n\
             apiVersion: v1\nkind: PersistentVolumeClaim\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  storageClassName: ''\n  \
             volumeName: {name}-{namespace}\n  accessModes: [ReadWriteMany]\n  \
             resources: {{requests: {{storage: 1Gi}}}}\n"
        ));
    }

    /// Makes a folder of the node that everybody can write to.
    pub fn open_folder(&self, name: &str) -> PathBuf {
        let folder = self.volume(name);
        std::fs::create_dir_all(&folder).unwrap();
        let all = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&folder, all).unwrap();
        folder
    }

    /// The folder behind a claimed volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.store.beside("volumes").join(name)
    }

    /// Waits until as many pods serve as should.
    pub fn wait_until_serving(&self, seconds: u64) {
        let what = "the service serves";
        self.cluster.wait(&self.namespace, seconds, what, || {
            let service = self
                .cluster
                .get(&self.namespace, "inferenceservice/minilm")?;
            let conditions = service["status"]["conditions"].as_array()?.clone();
            let mut conditions = conditions.into_iter();
            let ready = conditions.find(|it| it["type"] == "Ready")?;
            let is_new = ready["observedGeneration"] == service["metadata"]["generation"];
            (is_new && ready["reason"] == "Serving").then_some(())
        });
    }

    /// Writes real texts, over and over with ids of their own, and returns the file's bytes.
    pub fn rows(&self, count: usize) -> Vec<u8> {
        let texts =
            std::fs::read_to_string(repository().join("examples/embed/texts.jsonl")).unwrap();
        let texts: Vec<Value> = texts
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let lines = texts.iter().cycle().take(count).enumerate();
        let lines: String = lines
            .map(|(row, text)| {
                serde_json::json!({"id": row.to_string(), "text": text["text"]}).to_string() + "\n"
            })
            .collect();
        std::fs::write(self.bucket().join("rows.jsonl"), &lines).unwrap();
        lines.into_bytes()
    }

    /// The job as it is now.
    pub fn job(&self, name: &str) -> Value {
        let object = format!("batchjob/{name}");
        self.cluster.get(&self.namespace, &object).expect("the job")
    }

    /// A condition of the job: its status and its reason.
    pub fn condition(&self, name: &str, kind: &str) -> Option<(String, String)> {
        let job = self.job(name);
        let conditions = job["status"]["conditions"].as_array()?.clone();
        let condition = conditions.into_iter().find(|it| it["type"] == kind)?;
        let word = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        Some((word("status"), word("reason")))
    }

    /// Waits until the job has this reason.
    pub fn wait_for_reason(&self, name: &str, reason: &str, seconds: u64) {
        let what = format!("job {name} is {reason}");
        self.cluster.wait(&self.namespace, seconds, &what, || {
            self.condition(name, "Succeeded")
                .filter(|(_, found)| found == reason)
        });
    }

    /// Waits until shards of the job are committed, and some are not.
    pub fn wait_until_at_work(&self, name: &str, seconds: u64) {
        let what = format!("job {name} is at work");
        self.cluster.wait(&self.namespace, seconds, &what, || {
            let shards = self.job(name)["status"]["shards"].clone();
            (shards["committed"].as_u64()? > 0).then_some(())
        });
        self.assert_at_work(name);
    }

    /// Checks that some shards of the job have no commit yet: what disturbs a job that is done shows
    /// nothing.
    pub fn assert_at_work(&self, name: &str) {
        let planned = self.shards_planned(name);
        let committed = self.shards_committed(name);
        assert!(
            committed < planned,
            "{name} is done: {committed} of {planned}"
        );
    }

    /// What an output says of itself.
    pub fn manifest(&self, output: &str) -> Value {
        let file = self.bucket().join(output).join("manifest.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    /// Shards of the job's first run.
    pub fn shards_planned(&self, name: &str) -> usize {
        let plan = self
            .bucket()
            .join(name)
            .join("_millrace/runs/0001/plan.json");
        let plan: Value = serde_json::from_slice(&std::fs::read(plan).unwrap()).unwrap();
        plan["shards"].as_array().unwrap().len()
    }

    /// Those with a commit.
    pub fn shards_committed(&self, name: &str) -> usize {
        let commits = self.bucket().join(name).join("_millrace/runs/0001/commits");
        std::fs::read_dir(commits).map_or(0, Iterator::count)
    }

    /// What `kubectl get -o wide` shows of an object, by the names of its columns.
    pub fn columns(&self, object: &str) -> Vec<(String, String)> {
        let shown = ["-n", &self.namespace, "get", object, "-o", "wide"];
        let shown = self.cluster.kubectl(&shown);
        let (header, row) = shown.split_once('\n').expect("a header and a row");
        let mut columns = Vec::new();
        let mut rest = header;
        while !rest.is_empty() {
            let start = header.len() - rest.len();
            let name = rest.split(' ').next().unwrap_or_default();
            let behind = rest[name.len()..].trim_start();
            let end = header.len() - behind.len();
            let cell = row.get(start..if behind.is_empty() { row.len() } else { end });
            let cell = cell.unwrap_or_default().trim();
            columns.push((name.to_owned(), cell.to_owned()));
            rest = behind;
        }
        columns
    }

    /// Waits for the end of the job, which must be a success, and checks every row.
    pub fn check_succeeded(&self, name: &str, rows: &[u8], seconds: u64) -> Outcomes {
        self.wait_for_reason(name, "Completed", seconds);
        let (seen, count) = self.check_rows(name, rows);
        let status = self.job(name)["status"].clone();
        assert_eq!(status["rows"]["succeeded"], count);
        assert_eq!(status["rows"]["failed"], 0);
        assert_eq!(status["progress"], "100%");
        seen
    }

    /// Checks that every row of `rows.jsonl` ends once in an output; gives how many there are.
    pub fn check_rows(&self, output: &str, rows: &[u8]) -> (Outcomes, usize) {
        let seen = outcomes(&self.bucket().join(output));
        let ends = rows.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let mut offsets = vec![0];
        offsets.extend(ends.map(|(index, _)| index as u64 + 1));
        offsets.pop();
        assert_every_row_once(&seen, "s3://bucket/rows.jsonl", &offsets);
        (seen, offsets.len())
    }
}

impl Drop for Tenant<'_> {
    fn drop(&mut self) {
        let namespace = self.namespace.as_str();
        self.cluster
            .try_kubectl(&["delete", "namespace", namespace, "--wait=false"]);
        // Nothing of it is of use any more: its pods need not be drained.
        let now = ["--all", "--grace-period=0", "--force", "--wait=false"];
        let mut pods = vec!["-n", namespace, "delete", "pods"];
        pods.extend(now);
        self.cluster.try_kubectl(&pods);
    }
}

/// The manifest of a Secret with one key.
pub fn secret(namespace: &str, name: &str, key: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         stringData: {{{key}: '{value}'}}\n---\n"
    )
}

/// Copies the model that `cargo xtask setup` fetched.
pub fn copy_model(to: &Path) {
    let cache = std::env::var_os("MILLRACE_MODEL_CACHE").expect("cargo xtask test sets it");
    let from = PathBuf::from(cache).join("sentence-transformers/all-MiniLM-L6-v2");
    copy(&from, to);
}
