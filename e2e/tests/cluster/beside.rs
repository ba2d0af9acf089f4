//! A cluster beside the one of these tests: neither is in the other's way, and it goes without a trace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use millrace_e2e::process::send;
use millrace_e2e::sweeper::{Sweep, Sweeper};
use serde_json::Value;

use crate::cluster::xtask;
use crate::network::Network;
use crate::turn::turn_at_own;

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Asks kubectl which node there is.
const NODE_UID: [&str; 4] = ["get", "node", "-o", "jsonpath={.items[*].metadata.uid}"];

/// What a cluster keeps when it is down.
const IMAGES: &str = "containerd";

/// Processes that are started with something that lies in this folder.
fn processes(folder: &Path) -> Vec<i32> {
    let is_of_it = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(folder.to_str().unwrap())
    };
    let running = fs::read_dir("/proc").unwrap().flatten();
    let pids = running.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_of_it).collect()
}

/// What there is of a cluster whose processes work in `folder`, but for its images.
fn traces(folder: &Path, label: &str) -> Vec<String> {
    let mut traces: Vec<String> = processes(folder)
        .iter()
        .map(|pid| format!("process {pid}"))
        .collect();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts
        .lines()
        .filter(|it| it.contains(folder.to_str().unwrap()));
    traces.extend(mounts.map(str::to_owned));
    let networks = [PathBuf::from("/run/netns").join(label)];
    // One hierarchy, or one for each controller.
    let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    let groups = hierarchies.map(|it| it.path().join(label));
    let groups = groups.chain([Path::new(CGROUPS).join(label)]);
    let places = networks.into_iter().chain(groups).filter(|it| it.exists());
    traces.extend(places.map(|it| it.display().to_string()));
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = files.filter(|it| it.file_name() != IMAGES);
    traces.extend(files.map(|it| it.path().display().to_string()));
    traces
}

#[test]
fn a_cluster_stands_beside_another_and_begins_anew_when_it_was_killed_and_goes_without_a_trace() {
    let Some(cluster) = turn_at_own("it makes a second cluster on this machine") else {
        return;
    };
    let of_cluster = cluster.scratch().file_name().unwrap();
    let label = format!("{}-beside", of_cluster.display());
    let name = label.strip_prefix("millrace-").unwrap();
    let call = |action| xtask(&[action, "--name", name]);
    let scratch = cluster.scratch().join("beside");
    let sweeper = Sweeper::start(Sweep {
        command: &call("down"),
        scratch: &scratch,
        log: File::create(cluster.scratch().join("beside.log")).unwrap(),
    });
    assert!(call("up").status().unwrap().success());
    let places = xtask(&["env", "--json", "--name", name]).output().unwrap();
    let places: Value = serde_json::from_slice(&places.stdout).unwrap();
    let place = |key: &str| PathBuf::from(places[key].as_str().expect("a path"));
    let folder = place("folder");
    let ours = || cluster.kubectl(&NODE_UID);
    let uid = ours();

    let running = processes(&folder);
    assert!(!running.is_empty(), "nothing runs in {}", folder.display());
    for pid in running {
        send(pid, libc::SIGKILL);
    }
    assert!(call("up").status().unwrap().success(), "once more");
    let mut theirs = Network::Namespace(place("netns")).command(&place("bin").join("kubectl"));
    theirs.env("KUBECONFIG", place("kubeconfig")).args(NODE_UID);
    let theirs = theirs.output().unwrap();
    assert!(theirs.status.success(), "{theirs:?}");
    let theirs = String::from_utf8(theirs.stdout).unwrap();
    assert!(
        !theirs.is_empty() && theirs != uid,
        "{theirs:?} and {uid:?}"
    );

    assert!(traces(&folder, &label).len() > 3, "it is there");
    drop(sweeper);
    assert_eq!(traces(&folder, &label), Vec::<String>::new());
    assert_eq!(ours(), uid, "the other one is as it was");
}
