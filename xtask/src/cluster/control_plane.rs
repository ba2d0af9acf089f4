//! etcd and the API server alone, on loopback: for tests of what speaks with nothing but the API.
//!
//! It takes neither root nor namespaces and lives for as long as its standard input stays open, so
//! that whoever started it takes it along, however that ends. Nothing of it outlives this process:
//! the kernel ends its programs with it, and a sweeper beside it removes its folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::names::{Cluster, Listening};
use super::pki;
use super::processes::quietly;
use super::programs::{self, Program};
use super::wait::{end_of, until};
use crate::cache::{self, Cache};
use crate::needs::{self, Task};
use crate::setup;

/// An API server answers within seconds even where all cores are busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a start is tried: another process may take a port that was free.
const STARTS_MAX: usize = 3;

/// Whether the programs are built where they are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programs {
    /// They are, which takes minutes, once.
    Built,
    /// They are not: without them nothing is started, and nothing printed on standard output.
    IfBuilt,
}

/// Starts a control plane, prints one line of JSON once it answers, and ends it with its input.
pub fn run(programs: Programs) -> Result<()> {
    if programs == Programs::IfBuilt && !cache::root()?.join(setup::KUBERNETES).exists() {
        eprintln!("Kubernetes is not built: cargo xtask cluster control-plane builds it once");
        return Ok(());
    }
    needs::check(Task::ControlPlane)?;
    setup::kubernetes(&Cache::open()?)?;
    let folder = std::env::temp_dir().join(format!("millrace-api-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let _sweeper = sweeper(&folder)?;
    let (cluster, mut running) = started(&folder)?;
    let environment = serde_json::json!({
        "kubeconfig": cluster.kubeconfig(),
        "bin": cluster.bin(),
        "folder": cluster.folder(),
    });
    println!("{environment}");
    let input_ends = input_ends();
    while let Err(mpsc::RecvTimeoutError::Timeout) =
        input_ends.recv_timeout(Duration::from_millis(200))
    {
        all_run(&cluster, &mut running)?;
    }
    Ok(())
}

/// A program that runs, ended when dropped.
struct Running {
    name: &'static str,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Removes the folder once this process is gone, even if it was killed: then the pipe between them
/// ends. It has a session of its own, so that no signal of a terminal reaches it.
fn sweeper(folder: &Path) -> Result<Child> {
    Command::new("setsid")
        .args(["sh", "-c", "cat; until rm -rf \"$0\"; do sleep 0.1; done"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("setsid cannot be started")
}

fn started(folder: &Path) -> Result<(Cluster, Vec<Running>)> {
    let mut tries = 0;
    loop {
        let listening = Listening::on_loopback()?;
        let cluster = Cluster::control_plane(folder.to_owned(), listening)?;
        match start(&cluster) {
            Ok(running) => return Ok((cluster, running)),
            Err(error) => {
                tries += 1;
                if tries == STARTS_MAX {
                    return Err(error);
                }
            }
        }
    }
}

fn start(cluster: &Cluster) -> Result<Vec<Running>> {
    for relative in ["log", "pki", "etcd"] {
        let folder = cluster.path(relative);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
    }
    pki::make(cluster)?;
    let mut running = Vec::new();
    for program in programs::control_plane(cluster) {
        running.push(launch(cluster, program)?);
    }
    let mut ready = Command::new(cluster.bin().join("kubectl"));
    ready
        .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
        .args(["get", "--raw=/readyz"]);
    until(
        "the API server",
        &cluster.log("kube-apiserver"),
        PATIENCE,
        || {
            all_run(cluster, &mut running)?;
            Ok(quietly(&mut ready).is_ok())
        },
    )?;
    Ok(running)
}

/// Starts a program that the kernel kills when this process ends.
fn launch(cluster: &Cluster, program: Program) -> Result<Running> {
    let Program {
        name,
        path,
        arguments,
    } = program;
    let log = File::create(cluster.log(name))?;
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(path)
        .args(arguments)
        // A user's proxy would lead them off this machine.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        // They live for minutes and among tests that want the cores: memory is cheaper.
        .env("GOGC", "400")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("setpriv cannot be started")?;
    Ok(Running { name, child })
}

/// Fails if a program has ended, with its last words.
fn all_run(cluster: &Cluster, running: &mut [Running]) -> Result<()> {
    for Running { name, child } in running {
        if child.try_wait()?.is_some() {
            let log: PathBuf = cluster.log(name);
            bail!("{name} has ended; its log ends with\n{}", end_of(&log));
        }
    }
    Ok(())
}

/// A channel that closes when standard input does.
fn input_ends() -> mpsc::Receiver<()> {
    let (open, ends) = mpsc::channel();
    std::thread::spawn(move || {
        let _open = open;
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
    });
    ends
}
