//! One cluster for all tests of this program, with millrace installed in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_e2e::process::{binary, until};
use serde_json::Value;

/// Clusters of tests that may stand side by side. Each keeps its images for the next run.
const SLOTS: usize = 4;

/// Pause between two looks at the cluster: each starts a kubectl, on the cores that the pods need.
const PAUSE: Duration = Duration::from_millis(250);

/// Namespace of the operator.
pub const SYSTEM: &str = "millrace-system";

/// A running cluster. Its network is a namespace of its own, so everything that speaks to it is
/// started inside.
pub struct Cluster {
    name: String,
    kubeconfig: PathBuf,
    netns: PathBuf,
    bin: PathBuf,
    /// Held for as long as the cluster is this process' own.
    _slot: File,
}

/// One test at a time: they take away each other's pods and Redis.
static TURN: Mutex<Option<Cluster>> = Mutex::new(None);

/// The turn of one test at the cluster.
pub struct Turn(MutexGuard<'static, Option<Cluster>>);

impl std::ops::Deref for Turn {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.0.as_ref().expect("a turn is at a running cluster")
    }
}

/// Waits for this test's turn; `None`, with a line that says why, where no cluster can be made.
pub fn turn() -> Option<Turn> {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "--net", "--pid", "--fork", "true"]);
    // SAFETY: geteuid takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root || !probe.output().is_ok_and(|ended| ended.status.success()) {
        eprintln!("skipped: only root, with the right to make namespaces, can make a cluster");
        return None;
    }
    let mut turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if turn.is_none() {
        *turn = Some(Cluster::up());
        end_with_this_process();
    }
    Some(Turn(turn))
}

/// Statics are not dropped, so the cluster is taken down when the process ends.
fn end_with_this_process() {
    extern "C" fn down() {
        let mut turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = turn.take() {
            cluster.down();
        }
    }
    // SAFETY: the function is plain and takes no part in unwinding.
    unsafe { libc::atexit(down) };
}

impl Cluster {
    fn up() -> Self {
        let (name, slot) = free_slot();
        for action in ["up", "images"] {
            let done = xtask(&[action, "--name", &name]).status().unwrap();
            assert!(done.success(), "cargo xtask cluster {action} failed");
        }
        let printed = xtask(&["env", "--json", "--name", &name]).output().unwrap();
        let places: Value = serde_json::from_slice(&printed.stdout).expect("env prints JSON");
        let place = |key: &str| PathBuf::from(places[key].as_str().expect("a path"));
        let cluster = Self {
            kubeconfig: place("kubeconfig"),
            netns: place("netns"),
            bin: place("bin"),
            name,
            _slot: slot,
        };
        cluster.install();
        cluster
    }

    fn down(&self) {
        let done = xtask(&["down", "--name", &self.name]).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("the cluster {} is still up", self.name);
        }
    }

    /// Installs the chart as a user would.
    pub fn install(&self) {
        self.upgrade(&[]);
    }

    /// Installs the chart, or another version of it with further settings.
    pub fn upgrade(&self, settings: &[&str]) {
        let chart = root().join("charts/millrace");
        let mut helm = self.inside("helm");
        helm.args(["upgrade", "--install", "millrace"])
            .arg(chart)
            .args(["--namespace", SYSTEM, "--create-namespace"])
            .args(["--wait", "--timeout", "120s"])
            .args(["--set", "images.pullPolicy=Never"])
            .args(["--set", "leases.ttlMilliseconds=2000"])
            .args(["--set", "leases.redis.image=localhost/millrace/redis:dev"])
            .args(["--set", "images.operator=localhost/millrace/operator:dev"])
            .args(["--set", "images.worker=localhost/millrace/worker:dev"])
            .args([
                "--set",
                "images.server=localhost/millrace/inference-server:dev",
            ])
            .args(settings);
        expect(&mut helm);
    }

    /// Takes the chart away as a user would.
    pub fn uninstall(&self) {
        let mut helm = self.inside("helm");
        helm.args(["uninstall", "millrace", "--namespace", SYSTEM, "--wait"]);
        expect(&mut helm);
    }

    /// A program of the cluster's own folder, or of the machine, inside the cluster's network.
    pub fn inside(&self, program: &str) -> Command {
        let own = self.bin.join(program);
        let program = if own.exists() { own } else { program.into() };
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns.display()))
            .arg(program)
            .env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Calls kubectl, which must succeed; gives what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        expect(self.inside("kubectl").args(arguments))
    }

    /// Calls kubectl, whatever comes of it.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.inside("kubectl").args(arguments).output().unwrap()
    }

    /// Applies manifests.
    pub fn apply(&self, manifests: &str) {
        let applied = self.try_apply(manifests);
        let said = String::from_utf8_lossy(&applied.stderr);
        assert!(applied.status.success(), "{said}");
    }

    /// Applies manifests, whatever comes of it.
    pub fn try_apply(&self, manifests: &str) -> Output {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("manifests.yaml");
        std::fs::write(&file, manifests).unwrap();
        self.try_kubectl(&["apply", "-f", file.to_str().unwrap()])
    }

    /// An object as JSON, if it is there.
    pub fn get(&self, namespace: &str, object: &str) -> Option<Value> {
        let got = self.try_kubectl(&["-n", namespace, "get", object, "-o", "json"]);
        got.status
            .success()
            .then(|| serde_json::from_slice(&got.stdout).unwrap())
    }

    /// The items of a list, as JSON.
    pub fn list(&self, namespace: &str, kind: &str, selector: &str) -> Vec<Value> {
        let printed = self.kubectl(&["-n", namespace, "get", kind, "-l", selector, "-o", "json"]);
        let list: Value = serde_json::from_str(&printed).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until `probe` gives something, and tells what the cluster looks like if it never does.
    pub fn wait<T>(
        &self,
        namespace: &str,
        seconds: u64,
        what: &str,
        mut probe: impl FnMut() -> Option<T>,
    ) -> T {
        let unhurried = || {
            let found = probe();
            if found.is_none() {
                std::thread::sleep(PAUSE);
            }
            found
        };
        until(Duration::from_secs(seconds), unhurried).unwrap_or_else(|| {
            panic!(
                "{what}: not within {seconds} s\n{}",
                self.picture(namespace)
            )
        })
    }

    /// What is in a namespace, and what the operator says.
    fn picture(&self, namespace: &str) -> String {
        let said = |arguments: &[&str]| {
            let output = self.try_kubectl(arguments);
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        [
            said(&[
                "-n",
                namespace,
                "get",
                "batchjobs,inferenceservices,pods,jobs",
                "-o",
                "wide",
            ]),
            said(&[
                "-n",
                namespace,
                "get",
                "batchjobs,inferenceservices",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}{\" \"}{.status}{\"\\n\"}{end}",
            ]),
            said(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]),
            said(&[
                "-n",
                namespace,
                "logs",
                "-l",
                "app.kubernetes.io/name=millrace",
                "--all-containers",
                "--prefix",
                "--tail=15",
            ]),
            said(&[
                "-n",
                SYSTEM,
                "logs",
                "-l",
                "app.kubernetes.io/component=operator",
                "--tail=30",
            ]),
        ]
        .join("\n")
    }
}

/// A name that no other run uses now.
fn free_slot() -> (String, File) {
    for slot in 0..SLOTS {
        let name = format!("e2e{slot}");
        let path = std::env::temp_dir().join(format!("millrace-{name}.lock"));
        let file = File::create(path).unwrap();
        if file.try_lock().is_ok() {
            return (name, file);
        }
    }
    panic!("{SLOTS} runs of these tests are at work already");
}

/// The built xtask, not `cargo xtask`: that would wait for whoever builds.
fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("xtask"));
    command
        .arg("cluster")
        .args(arguments)
        .env("CARGO_MANIFEST_DIR", root().join("xtask"))
        .stdin(Stdio::null());
    command
}

/// The repository.
pub fn root() -> PathBuf {
    let crate_folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&crate_folder).join("..")
}

fn expect(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
