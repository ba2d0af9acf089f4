//! A job in a folder of its own: input, manifests, output, and the processes that work it off.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use millrace_e2e::history::commit_records;
use millrace_e2e::process::{PATIENCE, Process, binary, until};
use millrace_e2e::redis_server::RedisServer;

/// A job in a folder of its own.
pub struct Scene {
    folder: TempDir,
    /// Settings of the deterministic fake backend.
    fake_backend: String,
    lease_ttl_ms: u32,
    variables: Vec<(&'static str, String)>,
}

/// What a scene is made of.
pub struct SceneOptions {
    /// Name of the input file, or the URI of one that is there; its extension tells the format.
    pub input_name: &'static str,
    /// Bytes of the input file.
    pub input: Vec<u8>,
    /// Lines of YAML below `spec.input` besides `uris`, each indented by four spaces.
    pub input_settings: &'static str,
    /// Lines of YAML below `spec`, each indented by two spaces.
    pub settings: String,
    /// Settings of the fake backend, such as `micros-per-token=50`.
    pub fake_backend: String,
    /// Folder or URI of the output.
    pub output: &'static str,
    /// Lines of YAML below `spec.output` besides `uri`, each indented by four spaces.
    pub output_settings: &'static str,
    /// How long a lease of `millrace-worker` holds without renewal.
    pub lease_ttl_ms: u32,
    /// Variables of every process.
    pub variables: Vec<(&'static str, String)>,
}

impl Default for SceneOptions {
    fn default() -> Self {
        Self {
            input_name: "rows.jsonl",
            input: Vec::new(),
            input_settings: "    idField: id\n",
            settings: String::new(),
            fake_backend: "micros-per-token=1".to_owned(),
            output: "out",
            output_settings: "",
            lease_ttl_ms: 2_000,
            variables: Vec::new(),
        }
    }
}

impl Scene {
    /// Writes input and manifests.
    pub fn new(options: SceneOptions) -> Self {
        let SceneOptions {
            input_name,
            input,
            input_settings,
            settings,
            fake_backend,
            output,
            output_settings,
            lease_ttl_ms,
            variables,
        } = options;
        let folder = tempfile::tempdir().unwrap();
        if !input_name.contains("://") {
            std::fs::write(folder.path().join(input_name), input).unwrap();
        }
        let service = "apiVersion: millrace.dev/v1alpha1\n\
            kind: InferenceService\n\
            metadata:\n  name: fake\n\
            spec:\n  models:\n    - name: embed\n      task: Embedding\n      source:\n        uri: hf://fake/model\n";
        let job = format!(
            "apiVersion: millrace.dev/v1alpha1\n\
             kind: BatchJob\n\
             metadata:\n  name: scene\n\
             spec:\n  serviceRef:\n    name: fake\n  input:\n    uris: [{input_name}]\n\
             {input_settings}  output:\n    uri: {output}\n{output_settings}{settings}"
        );
        std::fs::write(folder.path().join("service.yaml"), service).unwrap();
        std::fs::write(folder.path().join("job.yaml"), job).unwrap();
        Self {
            folder,
            fake_backend,
            lease_ttl_ms,
            variables,
        }
    }

    /// A path below the scene's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The output folder.
    pub fn output(&self) -> PathBuf {
        self.path("out")
    }

    /// URI of the input file called `name`, as result lines carry it.
    pub fn uri(&self, name: &str) -> String {
        format!(
            "file://{}",
            self.folder
                .path()
                .canonicalize()
                .unwrap()
                .join(name)
                .display()
        )
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        command.env("MILLRACE_FAKE_BACKEND", &self.fake_backend);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `millrace run`.
    pub fn run(&self) -> Process {
        let mut command = self.command("millrace");
        command.arg("run").arg("-f").arg(self.path("job.yaml"));
        Process::start(command, self.path("run.log"))
    }

    /// Gives every process a variable another value.
    pub fn set_variable(&mut self, name: &'static str, value: String) {
        self.variables.push((name, value));
    }

    /// Starts a supervised inference-server and waits until it listens.
    pub fn server(&self) -> Process {
        let socket = self.path("server.sock");
        let mut command = self.command("millrace-inference-server");
        command
            .arg("--service")
            .arg(self.path("service.yaml"))
            .arg("--uds")
            .arg(&socket);
        command.arg("--supervise");
        let server = Process::start(command, self.path("server.log"));
        until(PATIENCE, || socket.exists().then_some(()))
            .unwrap_or_else(|| panic!("the server does not listen:\n{}", server.log()));
        server
    }

    /// Waits until so many shards are committed.
    pub fn wait_for_commits(&self, count: usize) {
        let committed = || commit_records(&self.output()).len();
        until(PATIENCE, || (committed() >= count).then_some(()))
            .unwrap_or_else(|| panic!("{} commits of {count}", committed()));
    }

    /// Starts one step of `millrace-worker`.
    pub fn worker(&self, step: &str, redis_url: &str, log: &str) -> Process {
        let mut command = self.command("millrace-worker");
        command.arg(step).arg("-f").arg(self.path("job.yaml"));
        let lease_ttl_ms = self.lease_ttl_ms.to_string();
        command.args(["--redis", redis_url, "--lease-ttl-ms", &lease_ttl_ms]);
        if step == "work" {
            command.arg("--server").arg(self.path("server.sock"));
        }
        Process::start(command, self.path(log))
    }
}

/// JSON lines with ids and texts of three to twelve words; every `bad_every`th line is no JSON.
pub fn jsonl(rows: usize, bad_every: usize) -> Vec<u8> {
    let words = [
        "grain", "water", "wheel", "stone", "flour", "river", "sluice", "gate", "beam",
    ];
    let mut lines = String::new();
    for row in 0..rows {
        if bad_every > 0 && row % bad_every == bad_every - 1 {
            lines.push_str("{\"id\": no json\n");
            continue;
        }
        let text: Vec<_> = (0..3 + row % 10)
            .map(|i| words[(row * 7 + i * 3) % words.len()])
            .collect();
        lines.push_str(&format!(
            "{{\"id\":\"row-{row}\",\"text\":\"{} {row}\"}}\n",
            text.join(" ")
        ));
    }
    lines.into_bytes()
}

/// Byte offsets of the first byte of each line.
pub fn line_offsets(input: &[u8]) -> Vec<u64> {
    let ends = input
        .iter()
        .enumerate()
        .filter(|&(_, &byte)| byte == b'\n')
        .map(|(i, _)| i as u64 + 1);
    std::iter::once(0)
        .chain(ends)
        .filter(|&start| start < input.len() as u64)
        .collect()
}

/// Forgets everything that a Redis holds.
pub fn flush(redis: &RedisServer) {
    redis.command::<()>(&["FLUSHALL"]);
}
