//! The node: namespaces of processes, mounts and network in which all of a cluster's programs and
//! pods live. The kernel ends every process and every mount in it together with its first process,
//! so that nothing can stay behind, however it ends.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::names::Cluster;
use super::processes::{Process, quietly};
use super::wait::until;

/// What the programs of a node find in their environment, and all of it: a user's proxy, say, would
/// lead them out of their network.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A node that runs.
pub struct Node {
    /// The process outside the namespaces whose end ends the first one inside.
    keeper: Process,
}

impl Node {
    /// The node of this cluster, if it runs.
    pub fn find(cluster: &Cluster) -> Option<Self> {
        let keeper: Process = fs::read_to_string(record(cluster)).ok()?.parse().ok()?;
        keeper.is_alive().then_some(Self { keeper })
    }

    /// Starts a node without programs. The cluster's network must be there.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let script = cluster.path("run/node.sh");
        fs::write(&script, include_str!("node.sh"))?;
        let log = File::create(cluster.log("node"))?;
        let mut keeper = Command::new("setsid");
        keeper
            .arg("nsenter")
            .arg(format!("--net={}", cluster.netns().display()))
            .args(["unshare", "--pid", "--fork", "--kill-child"])
            .args(["--mount", "--mount-proc"])
            .arg("sh")
            .arg(&script)
            .arg(cluster.folder())
            .env_clear()
            .env("PATH", PATH);
        let child = keeper
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("setsid cannot be started")?;
        let keeper = Process::of(child.id()).context("the node ended at once")?;
        fs::write(record(cluster), keeper.to_string())?;
        let node = Self { keeper };
        let ready = cluster.path("run/ready");
        until(
            "the node's namespaces",
            &cluster.log("node"),
            Duration::from_secs(10),
            || Ok(ready.exists() || !keeper.is_alive()),
        )?;
        if !keeper.is_alive() {
            let said = fs::read_to_string(cluster.log("node"))?;
            bail!("the node's namespaces cannot be made:\n{}", said.trim_end());
        }
        Ok(node)
    }

    /// Starts a program in the node, which outlives this one.
    pub fn launch(&self, program: &Path, arguments: &[String], log: &Path) -> Result<()> {
        let file = File::create(log)?;
        let mut command = Command::new("nsenter");
        for (namespace, file) in [
            ("mount", "mnt"),
            ("pid", "pid_for_children"),
            ("net", "net"),
        ] {
            command.arg(format!("--{namespace}={}", self.namespace(file).display()));
        }
        let status = command
            // The fork makes it a child of the node's first process.
            .args(["setsid", "--fork"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .context("nsenter cannot be started")?;
        ensure!(
            status.success(),
            "{} cannot be started, see {}",
            program.display(),
            log.display()
        );
        Ok(())
    }

    /// Names of the programs that run in the node itself, those of pods left out.
    pub fn programs(&self) -> BTreeSet<String> {
        let Ok(namespace) = fs::read_link(self.namespace("pid_for_children")) else {
            return BTreeSet::new();
        };
        processes_in(&namespace).filter_map(program_of).collect()
    }

    /// Ends everything in the node, and waits until it is gone.
    pub fn end(self, cluster: &Cluster) -> Result<()> {
        let namespace = fs::read_link(self.namespace("pid_for_children"));
        self.keeper.kill()?;
        until(
            "the end of the node",
            &cluster.log("node"),
            Duration::from_secs(30),
            || {
                let is_gone = match &namespace {
                    Ok(namespace) => processes_in(namespace).next().is_none(),
                    Err(_) => true,
                };
                Ok(is_gone && !self.keeper.is_alive())
            },
        )
    }

    fn namespace(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{file}", self.keeper.id()))
    }
}

/// Where a node's keeper is written down.
fn record(cluster: &Cluster) -> PathBuf {
    cluster.path("run/keeper")
}

/// A call of `program` in the cluster's network and nothing else of the node, as a user makes it.
pub fn in_network(cluster: &Cluster, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", cluster.netns().display()))
        .arg(program);
    command
}

/// A call of kubectl as the cluster's administrator.
pub fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut command = in_network(cluster, &cluster.bin().join("kubectl"));
    command
        .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
        .args(arguments);
    quietly(&mut command)
}

/// Ids of the processes in a namespace of processes.
fn processes_in(namespace: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(move |id| {
        fs::read_link(format!("/proc/{id}/ns/pid")).is_ok_and(|found| found == namespace)
    })
}

/// The file name of what a process runs.
fn program_of(id: u32) -> Option<String> {
    let line = fs::read(format!("/proc/{id}/cmdline")).ok()?;
    let program = line.split(|&byte| byte == 0).next()?;
    let program = String::from_utf8_lossy(program);
    Some(program.rsplit('/').next()?.to_owned())
}
