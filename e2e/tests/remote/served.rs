//! Workers of a service as its pods run them, and jobs that are given to it as the operator does.

use std::path::PathBuf;
use std::process::Command;

use millrace_e2e::process::{PATIENCE, Process, until};
use millrace_e2e::redis_server::RedisServer;
use millrace_e2e::remote::KEY;
use millrace_leases::{JobRegistry, RedisOptions};
use millrace_protocol::registry::RegisteredJob;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::scene::Scene;

/// A service without workers and jobs.
pub struct Served {
    pub scene: Scene,
    redis: RedisServer,
}

/// A job of the service.
pub struct Given<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its input and output.
    pub rows: String,
    pub output: String,
    /// Template of its prompt.
    pub template: &'a str,
    /// Name of the Secret with the credentials of both, a folder below `secrets`.
    pub credentials: Option<&'a str>,
    /// Jobs with a higher one go first.
    pub priority: i32,
}

impl Served {
    /// The service of a scene, whose key is mounted into its workers.
    pub fn new(scene: Scene) -> Self {
        let served = Self {
            scene,
            redis: RedisServer::start(),
        };
        served.write_secret("api", &[("apiKey", KEY.to_owned())]);
        served
    }

    /// Writes a mounted Secret, as the kubelet does.
    pub fn write_secret(&self, name: &str, values: &[(&str, String)]) {
        let folder = self.secrets().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (key, value) in values {
            std::fs::write(folder.join(key), value).unwrap();
        }
    }

    /// Gives all rows of the scene as a job, with the scene's output.
    pub fn give_rows(&self, name: &str) {
        self.give(Given {
            name,
            rows: self.scene.path("rows.jsonl").display().to_string(),
            output: self.scene.path("out").display().to_string(),
            template: "{{ title }}: {{ text }}",
            credentials: None,
            priority: 0,
        });
    }

    /// Plans a job like the scene's, and tells the workers of it.
    pub fn give(&self, given: Given) {
        let Given {
            name,
            rows,
            output,
            template,
            credentials,
            priority,
        } = given;
        let text = std::fs::read_to_string(self.scene.path("job.yaml")).unwrap();
        let (service, job) = text.split_once("\n---\n").unwrap();
        let mut job: Value = serde_json::from_str(job).unwrap();
        job["metadata"]["name"] = name.into();
        job["spec"]["input"]["uris"] = vec![rows].into();
        job["spec"]["output"]["uri"] = output.into();
        job["spec"]["steps"][0]["prompt"]["template"] = template.into();
        let manifests = format!("{service}\n---\n{job}\n");
        let (file, log) = (format!("{name}.yaml"), format!("{name}.log"));
        let file = self.scene.path(&file);
        std::fs::write(&file, &manifests).unwrap();
        let mut plan = self.worker("plan");
        plan.arg("-f").arg(file);
        if let Some(secret) = credentials {
            plan.arg("--credentials").arg(self.secrets().join(secret));
        }
        Process::start(plan, self.scene.path(&log)).succeed();
        let job = RegisteredJob {
            priority,
            manifests,
            credentials: credentials.map(str::to_owned),
        };
        Runtime::new().unwrap().block_on(async {
            self.registry().put(name, &job).await.unwrap();
        });
    }

    /// Gives a job another priority, as the operator does when its spec says so.
    pub fn give_priority(&self, name: &str, priority: i32) {
        Runtime::new().unwrap().block_on(async {
            let registry = self.registry();
            let mut jobs = registry.list().await.unwrap().into_iter();
            let (_, mut job) = jobs.find(|(it, _)| it == name).expect("given");
            job.priority = priority;
            registry.put(name, &job).await.unwrap();
        });
    }

    fn registry(&self) -> JobRegistry {
        let redis = RedisOptions::new(self.redis.url());
        JobRegistry::new(&redis, "default", "api").unwrap()
    }

    /// Starts a worker.
    pub fn start(&self, log: &str) -> Process {
        self.start_at("127.0.0.1:0", log)
    }

    /// Starts a worker that listens at this address.
    pub fn start_at(&self, listen: &str, log: &str) -> Process {
        let mut serve = self.worker("serve");
        serve.args(["--namespace", "default", "--service", "api", "--pod", log]);
        serve.args(["--listen", listen, "--remote"]);
        serve.arg("--secrets").arg(self.secrets());
        Process::start(serve, self.scene.path(log))
    }

    /// The folder with a folder for each Secret.
    pub fn secrets(&self) -> PathBuf {
        self.scene.path("secrets")
    }

    fn worker(&self, step: &str) -> Command {
        let mut command = self.scene.command("millrace-worker");
        command.env_remove("MILLRACE_API_KEY").arg(step);
        command.args(["--redis", &self.redis.url(), "--lease-ttl-ms", "10000"]);
        command
    }
}

/// Waits for what a worker brings about.
pub fn wait(worker: &Process, what: &str, mut is_there: impl FnMut() -> bool) {
    let seen = until(PATIENCE, || is_there().then_some(()));
    assert!(seen.is_some(), "no {what}:\n{}", worker.log());
}
