//! A job in a cluster beside the same job on the machine itself: how long until its first rows are
//! there, how long in all, and what the operator takes for it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Bench;
use crate::cluster::{self, Environment};
use crate::corpus;
use crate::process::{heading, output, repository, run};

/// Name of the cluster that is made for it.
const NAME: &str = "bench";
/// Namespace of the release, and of the job.
const SYSTEM: &str = "millrace-system";
const TENANT: &str = "bench";
/// The job's size.
const ROWS: usize = 20_000;
/// Longest that one job may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Port of the S3 server on the node.
const S3_PORT: u16 = 7_070;

/// What the operator writes, leases and Events left out: resource and subresource. Pods are others' to
/// make and delete; what it writes of them are patches.
const WRITTEN: [(&str, &str); 10] = [
    ("batchjobs", "status"),
    ("inferenceservices", "status"),
    ("deployments", ""),
    ("services", ""),
    ("configmaps", ""),
    ("secrets", ""),
    ("poddisruptionbudgets", ""),
    ("networkpolicies", ""),
    ("jobs", ""),
    ("pods", ""),
];

/// Measures and prints.
pub fn measure(bench: &Bench) -> Result<()> {
    heading(&format!("{ROWS} rows in a cluster of one node"));
    cluster::run_cluster(&["up", "--name", NAME])?;
    let measured = in_cluster(bench);
    cluster::run_cluster(&["down", "--name", NAME])?;
    measured
}

/// The cluster, the bucket and the server in front of it, which ends with this.
struct Scene {
    environment: Environment,
    bucket: PathBuf,
    address: String,
    server: Child,
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Whether or not it still ran, it does not any more.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// How long a job took.
struct Took {
    first_commit: f64,
    whole: f64,
}

fn in_cluster(bench: &Bench) -> Result<()> {
    cluster::run_cluster(&["images", "--name", NAME])?;
    let scene = Scene::set(bench)?;
    let before = scene.writes()?;
    let cold = scene.job("cold")?;
    let cold_writes = scene.writes()? - before;
    let before = scene.writes()?;
    let warm = scene.job("warm")?;
    let warm_writes = scene.writes()? - before;
    let memory = scene.operator_mib()?;
    // The pod would take the cores that the local run is to have.
    scene.kubectl(&[
        "-n",
        TENANT,
        "delete",
        "inferenceservice",
        "minilm",
        "--wait",
    ])?;
    scene.wait("the pods to end", || {
        let pods = scene.kubectl(&["-n", TENANT, "get", "pods", "-o", "name"])?;
        Ok((!pods.contains("inference")).then_some(()))
    })?;
    let local = scene.local(bench)?;
    let say = |what: &str, took: &Took, writes: u64| {
        println!(
            "    {what}: first rows after {:.1} s, all after {:.1} s ({:.0} rows/s), {writes} writes",
            took.first_commit,
            took.whole,
            ROWS as f64 / took.whole
        );
    };
    say("from zero pods", &cold, cold_writes);
    say("with two pods that serve", &warm, warm_writes);
    println!("    the same by `millrace run`, its server's start included: {local:.1} s");
    println!(
        "    ratio to it: {:.2} from zero, {:.2} with two pods that serve",
        cold.whole / local,
        warm.whole / local
    );
    println!("    memory of the operator: {memory} MiB");
    Ok(())
}

impl Scene {
    fn set(bench: &Bench) -> Result<Self> {
        let environment = cluster::environment(NAME)?;
        let root = bench.folder.join("cluster");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        let bucket = root.join("bucket");
        fs::create_dir_all(bucket.join("models"))?;
        run(Command::new("cp")
            .arg("-rL")
            .arg(&bench.model)
            .arg(bucket.join("models/minilm")))?;
        let texts = corpus::short()?;
        let texts: Vec<_> = texts.iter().cycle().take(ROWS).cloned().collect();
        corpus::write(&texts, &bucket.join("rows.jsonl"))?;
        let helm = environment.inside("helm");
        run(&mut helm_install(helm))?;
        let nodes = [
            "get",
            "nodes",
            "-o",
            "jsonpath={.items[0].status.addresses[0].address}",
        ];
        let node = output(environment.inside("kubectl").args(nodes))?;
        let address = format!("{}:{S3_PORT}", node.trim());
        let server = environment
            .inside(&bench.gateway.display().to_string())
            .args(["--port", &address, "posix"])
            .arg(&root)
            .env("ROOT_ACCESS_KEY", "bench")
            .env("ROOT_SECRET_KEY", "bench-secret")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("versitygw cannot be started")?;
        let scene = Self {
            environment,
            bucket,
            address,
            server,
        };
        scene.apply(&scene.secret())?;
        scene.apply(SERVICE)?;
        Ok(scene)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.environment.inside("kubectl").args(arguments))
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let file = self.bucket.with_file_name("manifest.yaml");
        fs::write(&file, manifest)?;
        run(self
            .environment
            .inside("kubectl")
            .args(["apply", "-f"])
            .arg(file))
    }

    fn secret(&self) -> String {
        let variables = self
            .variables()
            .map(|(name, value)| format!("  {name}: '{value}'\n"));
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {TENANT}}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: bucket, namespace: {TENANT}}}\n\
             stringData:\n{}",
            variables.concat()
        )
    }

    fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", "bench".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "bench-secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// Asks until there is an answer.
    fn wait<T>(&self, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if Instant::now() > deadline {
                bail!("{what} took longer than {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Applies a job and follows it to its end.
    fn job(&self, name: &str) -> Result<Took> {
        let commits = self.bucket.join(name).join("_millrace/runs/0001/commits");
        let started = Instant::now();
        self.apply(&job(name))?;
        self.wait("the first commit", || {
            let committed = fs::read_dir(&commits).map_or(0, Iterator::count);
            Ok((committed > 0).then_some(()))
        })?;
        let first_commit = started.elapsed().as_secs_f64();
        // One command that watches: one that asks over and over would take the cores from the pods.
        let (object, timeout) = (format!("batchjob/{name}"), PATIENCE.as_secs());
        self.kubectl(&[
            "-n",
            TENANT,
            "wait",
            &object,
            "--for=condition=Succeeded",
            &format!("--timeout={timeout}s"),
        ])?;
        Ok(Took {
            first_commit,
            whole: started.elapsed().as_secs_f64(),
        })
    }

    /// Seconds of the same job without a cluster.
    fn local(&self, bench: &Bench) -> Result<f64> {
        let file = self.bucket.with_file_name("local.yaml");
        fs::write(&file, format!("{}---\n{SERVICE}", job("local")))?;
        let program = bench.programs.join("millrace").display().to_string();
        let mut command = self.environment.inside(&program);
        command.args(["run", "-o", "json", "-f"]).arg(file);
        command.envs(bench.environment.iter().map(|(name, value)| (name, value)));
        command.env("MILLRACE_MODEL_CACHE", self.bucket.with_file_name("models"));
        command.envs(self.variables()).stdout(Stdio::null());
        let started = Instant::now();
        run(&mut command)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Writes that the API server has seen of what the operator writes.
    fn writes(&self) -> Result<u64> {
        let metrics = self.kubectl(&["get", "--raw", "/metrics"])?;
        let written = metrics.lines().filter_map(|line| {
            let (labels, count) = line
                .strip_prefix("apiserver_request_total{")?
                .split_once("} ")?;
            let has = |label: &str, value: &str| labels.contains(&format!("{label}=\"{value}\""));
            let writes = match has("resource", "pods") {
                true => &["PATCH"][..],
                false => &["POST", "PUT", "PATCH", "APPLY", "DELETE"],
            };
            let is_write = writes.iter().any(|verb| has("verb", verb));
            let mut ours = WRITTEN.iter();
            let is_ours =
                ours.any(|(resource, sub)| has("resource", resource) && has("subresource", sub));
            (is_write && is_ours).then(|| count.parse::<f64>().ok())?
        });
        Ok(written.sum::<f64>() as u64)
    }

    fn operator_mib(&self) -> Result<u64> {
        let nodes = ["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"];
        let node = self.kubectl(&nodes)?;
        let path = format!("/api/v1/nodes/{}/proxy/stats/summary", node.trim());
        let summary: Value = serde_json::from_str(&self.kubectl(&["get", "--raw", &path])?)?;
        let pods = summary["pods"].as_array().context("a node has pods")?;
        let container = pods
            .iter()
            .flat_map(|pod| pod["containers"].as_array())
            .flatten();
        let mut operator = container.filter(|it| it["name"] == "operator");
        let operator = operator.next().context("the operator runs")?;
        let bytes = operator["memory"]["workingSetBytes"].as_u64();
        Ok(bytes.context("its memory is known")? >> 20)
    }
}

fn helm_install(mut helm: Command) -> Command {
    let image = |name: &str| format!("images.{name}=localhost/millrace/{}:dev", image_of(name));
    helm.args(["upgrade", "--install", "millrace"])
        .arg(chart())
        .args([
            "--namespace",
            SYSTEM,
            "--create-namespace",
            "--wait",
            "--timeout",
            "120s",
        ])
        .args(["--set", "images.pullPolicy=Never"])
        .args(["--set", "leases.redis.image=localhost/millrace/redis:dev"])
        .args(["--set", &image("operator")])
        .args(["--set", &image("worker")])
        .args(["--set", &image("server")])
        .stdout(Stdio::null());
    helm
}

fn image_of(name: &str) -> &str {
    match name {
        "server" => "inference-server",
        name => name,
    }
}

fn chart() -> PathBuf {
    repository().join("charts/millrace")
}

const SERVICE: &str = "apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: minilm, namespace: bench}
spec:
  models:
    - {name: minilm, task: Embedding, maxLength: 256, source: {uri: 's3://bucket/models/minilm'}}
  secrets: [{name: bucket}]
  autoscaling: {minReplicas: 0, maxReplicas: 2, idleSeconds: 3600}
";

fn job(name: &str) -> String {
    format!(
        "apiVersion: millrace.dev/v1alpha1\nkind: BatchJob\n\
         metadata: {{name: {name}, namespace: {TENANT}}}\nspec:\n  \
         serviceRef: {{name: minilm}}\n  credentials: {{name: bucket}}\n  \
         input: {{uris: ['s3://bucket/rows.jsonl'], idField: id}}\n  \
         output: {{uri: 's3://bucket/{name}'}}\n  sharding: {{targetBytes: 262144}}\n"
    )
}
