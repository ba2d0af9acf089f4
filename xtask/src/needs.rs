//! What must be installed before anything is fetched: all that is missing is named at once.

use std::path::Path;

use anyhow::{Result, bail};

use crate::process::{heading, installed, run, succeeds};
use crate::setup;

/// A task's needs beyond Rust.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Build and run.
    Demo,
    /// The servers of the tests as well, among them an API server of Kubernetes.
    Test,
    /// Other people's programs to compare with as well.
    Bench,
    /// What makes the keys of an API server.
    ControlPlane,
    /// What runs containers, and the servers of the tests, which become images.
    Cluster,
}

/// One missing program, with the Debian package that brings it.
struct Missing {
    what: &'static str,
    package: &'static str,
}

/// Fails with one list of everything that `task` lacks on this machine. For tests and clusters, what
/// apt-get can bring is installed where this process may do so, so that a bare machine needs no hands.
pub fn check(task: Task) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("libtorch is pinned for Linux on x86_64 only; this machine is another");
    }
    let mut missing = missing(task);
    let brings_packages = matches!(task, Task::Test | Task::ControlPlane | Task::Cluster);
    if brings_packages && !missing.is_empty() && is_root() && installed("apt-get") {
        install(&missing)?;
        missing = self::missing(task);
    }
    let mut lines: Vec<String> = missing
        .iter()
        .map(|it| format!("  {:<28} apt-get install {}", it.what, it.package))
        .collect();
    if needs_go(task) && !go_is_new_enough() {
        lines.push(format!(
            "  {:<28} https://go.dev/dl (Debian's is too old)",
            "Go 1.24 or newer"
        ));
    }
    if !lines.is_empty() {
        bail!("this is missing on this machine:\n{}", lines.join("\n"));
    }
    Ok(())
}

fn missing(task: Task) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut need = |there: bool, what, package| {
        if !there {
            missing.push(Missing { what, package });
        }
    };
    need(installed("gcc"), "gcc", "gcc");
    need(installed("g++"), "g++", "g++");
    need(installed("python3"), "python3", "python3");
    need(
        succeeds("python3", &["-m", "pip", "--version"]),
        "pip for python3",
        "python3-pip",
    );
    if matches!(task, Task::Test | Task::Cluster) {
        need(installed("redis-server"), "redis-server", "redis-server");
    }
    if task == Task::Test {
        need(has_postgres(), "postgres and initdb", "postgresql");
    }
    if matches!(task, Task::Test | Task::ControlPlane | Task::Cluster) {
        need(installed("openssl"), "openssl", "openssl");
        need(installed("setpriv"), "setpriv", "util-linux");
    }
    if task == Task::Cluster {
        need(installed("containerd"), "containerd", "containerd");
        need(installed("runc"), "runc", "runc");
        need(
            Path::new("/usr/lib/cni/ptp").exists(),
            "network plugins for containers",
            "containernetworking-plugins",
        );
        need(installed("iptables"), "iptables", "iptables");
        need(installed("ip"), "ip", "iproute2");
        need(installed("busybox"), "busybox", "busybox-static");
    }
    if task == Task::Bench {
        let venv = succeeds("python3", &["-c", "import venv, ensurepip"]);
        need(venv, "venv for python3", "python3-venv");
    }
    missing
}

/// Whether a Postgres server can be started. Debian keeps its programs off the search path.
fn has_postgres() -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    folders.any(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        || (installed("initdb") && installed("postgres"))
}

fn install(missing: &[Missing]) -> Result<()> {
    let packages: Vec<&str> = missing.iter().map(|it| it.package).collect();
    heading(&format!(
        "installing {} with apt-get, which this needs",
        packages.join(", ")
    ));
    let apt_get = |arguments: &[&str]| {
        let mut command = std::process::Command::new("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    };
    let install: Vec<&str> = ["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(packages)
        .collect();
    // Package lists may be absent or too old to install from, which only the first try can tell.
    apt_get(&install).or_else(|_| apt_get(&["update"]).and_then(|()| apt_get(&install)))
}

/// Whether this process may make the namespaces that a cluster lives in: root in a container often
/// may not.
pub fn can_make_clusters() -> bool {
    is_root() && succeeds("unshare", &["--mount", "--net", "--pid", "--fork", "true"])
}

/// Whether this process may install packages and make namespaces.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|of_this_process| of_this_process.uid() == 0)
}

/// Whether a task still has to build programs of Go.
fn needs_go(task: Task) -> bool {
    let built = |place| crate::cache::root().is_ok_and(|root| root.join(place).exists());
    match task {
        Task::Demo | Task::Bench => false,
        Task::ControlPlane => !built(setup::KUBERNETES),
        Task::Test | Task::Cluster => !built(setup::VERSITYGW) || !built(setup::KUBERNETES),
    }
}

/// Whether `go` can build the S3 server, fetching a newer toolchain of its own where it knows how.
fn go_is_new_enough() -> bool {
    go().is_some_and(|go| {
        let version = crate::process::output(std::process::Command::new(go).arg("version"));
        version.is_ok_and(|version| go_minor(&version).is_some_and(|minor| minor >= 21))
    })
}

/// Where `go` is: on the search path, or where its own installer puts it.
pub fn go() -> Option<&'static str> {
    const DEFAULT: &str = "/usr/local/go/bin/go";
    if installed("go") {
        Some("go")
    } else {
        Path::new(DEFAULT).is_file().then_some(DEFAULT)
    }
}

/// The second number of `go version go1.22.3 linux/amd64`.
fn go_minor(version: &str) -> Option<u32> {
    let (_, numbers) = version.split_once("go1.")?;
    numbers
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::go_minor;

    #[test]
    fn the_version_of_go_is_read_from_its_own_words() {
        assert_eq!(go_minor("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(go_minor("go version go1.19 linux/amd64"), Some(19));
        assert_eq!(go_minor("go version devel"), None);
    }
}
