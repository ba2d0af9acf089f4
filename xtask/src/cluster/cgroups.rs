//! The cluster's own cgroups, below which its kubelet puts the pods. Kubelets that shared them would
//! end each other's pods as leftovers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::names::Cluster;

const ROOT: &str = "/sys/fs/cgroup";
/// What the kubelet asks for where all controllers share one hierarchy.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];
/// Processes that were killed leave their cgroups a moment later.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes them.
pub fn make(cluster: &Cluster) -> Result<()> {
    enable_controllers();
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(cluster.label());
        fs::create_dir_all(&folder)
            .with_context(|| format!("the cgroup {} cannot be made", folder.display()))?;
    }
    Ok(())
}

/// Removes them with all below, which must hold no process that lives on.
pub fn remove(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for hierarchy in hierarchies()? {
        let folder = hierarchy.join(cluster.label());
        while let Err(error) = remove_tree(&folder) {
            if Instant::now() > deadline {
                return Err(error)
                    .with_context(|| format!("the cgroup {} cannot be removed", folder.display()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// Where cgroups can be made: one place, or one per controller on older machines.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut hierarchies = Vec::new();
    for entry in fs::read_dir(root).context("this machine has no cgroups")? {
        let entry = entry?;
        // Links are second names of the same place.
        if entry.file_type()?.is_dir() && entry.path().join("cgroup.procs").exists() {
            hierarchies.push(entry.path());
        }
    }
    Ok(hierarchies)
}

/// Lets cgroups below the root of the one hierarchy have controllers. One that this machine lacks is
/// the kubelet's to complain about.
fn enable_controllers() {
    let file = Path::new(ROOT).join("cgroup.subtree_control");
    if file.exists() {
        for controller in CONTROLLERS {
            fs::write(&file, format!("+{controller}")).ok();
        }
    }
}

/// Removes a cgroup and those below it. Its files go with it and cannot be removed alone.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
