//! A whole job as a user runs it, and the memory it takes.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Bench, is_ready};

/// Longest that a server may take to load its model.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// A folder with the manifests of a job over one file.
pub struct Job {
    /// The folder.
    pub folder: PathBuf,
}

/// A command that ended, with what it took.
pub struct Ended {
    /// What it printed.
    pub stdout: String,
    /// From start to end.
    pub seconds: f64,
    /// Most memory of the process itself, its children left out, in MiB.
    pub peak_mib: u64,
}

impl Job {
    /// Lays a job over `input` into `bench.folder/<name>`, without any earlier output.
    pub fn lay(bench: &Bench, name: &str, dtype: &str, input: &Path) -> Result<Self> {
        let folder = bench.folder.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("service.yaml"), service(dtype))?;
        std::fs::write(folder.join("job.yaml"), manifest(input))?;
        Ok(Self { folder })
    }

    /// Changes the job, which has run, into one that asks about what its output lacks.
    pub fn go_on_from_its_output(&self) -> Result<()> {
        let earlier = self.folder.join("earlier");
        std::fs::rename(self.folder.join("output"), &earlier)?;
        let file = self.folder.join("job.yaml");
        let mut manifest = std::fs::read_to_string(&file)?;
        manifest += &format!("  incremental: {{from: '{}'}}\n", earlier.display());
        std::fs::write(&file, manifest)?;
        Ok(())
    }

    /// Runs `millrace run` over it with further arguments and variables.
    pub fn run(
        &self,
        bench: &Bench,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Ended> {
        let mut command = Command::new(bench.programs.join("millrace"));
        command
            .args(["run", "-o", "json", "-f"])
            .arg(&self.folder)
            .args(arguments);
        command.envs(bench.environment.iter().map(|(name, value)| (name, value)));
        command.envs(variables.iter().copied());
        watched(&mut command)
    }

    /// Seconds from the start of the server for this job until it is ready.
    pub fn server_start_seconds(&self, bench: &Bench) -> Result<f64> {
        let socket = self.folder.join("start.sock");
        let started = Instant::now();
        let mut server = Command::new(bench.programs.join("millrace-inference-server"));
        server
            .arg("--service")
            .arg(self.folder.join("service.yaml"))
            .arg("--uds")
            .arg(&socket);
        server.envs(bench.environment.iter().map(|(name, value)| (name, value)));
        let mut server = server.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let ready = loop {
            if is_ready(UnixStream::connect(&socket)) {
                break Ok(started.elapsed().as_secs_f64());
            }
            if server.try_wait()?.is_some() || started.elapsed() > START_DEADLINE {
                break Err(anyhow::anyhow!(
                    "the inference-server does not become ready"
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        server.kill()?;
        server.wait()?;
        ready
    }
}

/// Runs a command to its end and watches its memory. The kernel keeps the highest mark itself, so
/// that a look now and then misses only what grows in the last moment.
fn watched(command: &mut Command) -> Result<Ended> {
    let line = crate::process::shown(command);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{line}` cannot be started"))?;
    let mut output = child.stdout.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut printed = String::new();
        output.read_to_string(&mut printed).map(|_| printed)
    });
    let mut peak_mib = 0;
    let status = loop {
        peak_mib = peak_mib.max(high_water_mib(&child).unwrap_or(0));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    let stdout = reader.join().expect("reading cannot panic")?;
    Ok(Ended {
        stdout,
        seconds,
        peak_mib,
    })
}

fn high_water_mib(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib / 1024)
}

fn service(dtype: &str) -> String {
    format!(
        "apiVersion: millrace.dev/v1alpha1\nkind: InferenceService\nmetadata: {{name: minilm}}\n\
         spec:\n  models:\n    - name: minilm\n      task: Embedding\n      dtype: {dtype}\n      \
         maxLength: 256\n      source: {{uri: hf://sentence-transformers/all-MiniLM-L6-v2}}\n"
    )
}

fn manifest(input: &Path) -> String {
    format!(
        "apiVersion: millrace.dev/v1alpha1\nkind: BatchJob\nmetadata: {{name: bench}}\nspec:\n  \
         serviceRef: {{name: minilm}}\n  input: {{uris: ['{}'], idField: id}}\n  \
         output: {{uri: output}}\n",
        input.display()
    )
}
