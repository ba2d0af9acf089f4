//! Starting a cluster, and ending it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::names::{Cluster, NODE};
use super::node::{Node, kubectl};
use super::programs::{self, Program};
use super::wait::{end_of, until};
use super::{cgroups, configs, images, network, pki};
use crate::process::heading;

/// What a cluster's folder holds while it runs.
const FOLDERS: [&str; 8] = [
    "pod-networks",
    "cni",
    "kubelet",
    "log/node",
    "pki",
    "run",
    "settings",
    "containerd",
];
/// The images, which stay when a cluster ends, since unpacking them again takes a while.
const KEPT: &str = "containerd";
/// Written when everything answered, relative to the folder.
const COMPLETE: &str = "run/complete";

/// Programs are there within seconds even where all cores are busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the cluster is up: complete, with all its programs, and it answers.
pub fn is_up(cluster: &Cluster) -> bool {
    let Some(node) = Node::find(cluster) else {
        return false;
    };
    let running = node.programs();
    cluster.path(COMPLETE).exists()
        && programs::ALL.iter().all(|name| running.contains(*name))
        && kubectl(cluster, &["get", "--raw=/readyz"]).is_ok()
}

/// Starts the cluster afresh. Whatever an earlier one of its name left, running or not, goes first.
/// One that cannot be started leaves its logs and nothing else.
pub fn up(cluster: &Cluster) -> Result<()> {
    stop(cluster)?;
    clear(cluster)?;
    heading(&format!("starting the cluster {}", cluster.name()));
    let started = start(cluster);
    if started.is_err() {
        stop(cluster)?;
    }
    started
}

/// Ends the cluster and removes all of it but its images.
pub fn down(cluster: &Cluster) -> Result<()> {
    stop(cluster)?;
    clear(cluster)
}

/// Removes the images of a cluster that is down.
pub fn forget(cluster: &Cluster) -> Result<()> {
    let folder = cluster.folder();
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

fn stop(cluster: &Cluster) -> Result<()> {
    if let Some(node) = Node::find(cluster) {
        node.end(cluster)?;
    }
    cgroups::remove(cluster)?;
    network::remove(cluster)
}

fn clear(cluster: &Cluster) -> Result<()> {
    let Ok(entries) = fs::read_dir(cluster.folder()) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == KEPT {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn start(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    for folder in FOLDERS {
        fs::create_dir_all(cluster.path(folder))?;
    }
    pki::make(cluster)?;
    configs::write(cluster)?;
    network::make(cluster)?;
    cgroups::make(cluster)?;
    let node = Node::start(cluster)?;
    let mut running = Vec::new();
    launch(cluster, &node, programs::first(cluster), &mut running)?;
    images::load_pause(cluster)?;
    wait(
        cluster,
        &node,
        &running,
        "kube-apiserver",
        &["get", "--raw=/readyz"],
    )?;
    say("the API server answers", started);
    launch(cluster, &node, programs::then(cluster), &mut running)?;
    let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    until(
        "the node's readiness",
        &cluster.log("kubelet"),
        PATIENCE,
        || {
            all_run(cluster, &node, &running)?;
            let answer = kubectl(cluster, &["get", "node", NODE, "-o", ready]);
            Ok(answer.is_ok_and(|answer| answer == "True"))
        },
    )?;
    // Without its account, no pod can be made in a namespace.
    let account = ["get", "serviceaccount", "default"];
    wait(
        cluster,
        &node,
        &running,
        "kube-controller-manager",
        &account,
    )?;
    fs::write(cluster.path(COMPLETE), "")?;
    say("the node is ready", started);
    Ok(())
}

fn say(what: &str, since: Instant) {
    println!("    {what} after {:.1} s", since.elapsed().as_secs_f64());
}

/// Starts programs and waits until each is seen to run.
fn launch<const N: usize>(
    cluster: &Cluster,
    node: &Node,
    programs: [Program; N],
    running: &mut Vec<&'static str>,
) -> Result<()> {
    for program in &programs {
        node.launch(
            &program.path,
            &program.arguments,
            &cluster.log(program.name),
        )?;
    }
    for Program { name, .. } in programs {
        let patience = Duration::from_secs(5);
        until(name, &cluster.log(name), patience, || {
            Ok(node.programs().contains(name))
        })?;
        running.push(name);
    }
    Ok(())
}

/// Waits until kubectl succeeds, which `program` makes it do.
fn wait(
    cluster: &Cluster,
    node: &Node,
    running: &[&str],
    program: &str,
    arguments: &[&str],
) -> Result<()> {
    until(
        &format!("`kubectl {}`", arguments.join(" ")),
        &cluster.log(program),
        PATIENCE,
        || {
            all_run(cluster, node, running)?;
            Ok(kubectl(cluster, arguments).is_ok())
        },
    )
}

/// Fails if a program has ended, with its last words.
fn all_run(cluster: &Cluster, node: &Node, names: &[&str]) -> Result<()> {
    let running = node.programs();
    for name in names {
        if !running.contains(*name) {
            let log = cluster.log(name);
            bail!(
                "{name} has ended; {} ends with\n{}",
                log.display(),
                end_of(&log)
            );
        }
    }
    Ok(())
}
