//! A cluster with millrace installed in it: how it is made, reached, asked and waited for.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use millrace_e2e::files::repository;
use millrace_e2e::process::{binary, until};
use millrace_e2e::sweeper::{Sweep, Sweeper};
use serde_json::Value;

use crate::choice::{Images, KUBECONFIG, Theirs};
use crate::network::Network;
use crate::objects::Objects;

/// Clusters of tests that may stand side by side. Each keeps its images for the next run.
const SLOTS: usize = 4;

/// Pause between two looks at the cluster.
const PAUSE: Duration = Duration::from_millis(250);

/// Namespace of the operator.
pub const SYSTEM: &str = "millrace-system";

/// Values of the chart that name images, and which image.
const IMAGES: [(&str, &str); 5] = [
    ("images.operator", "operator"),
    ("images.worker", "worker"),
    ("images.server", "inference-server"),
    ("leases.redis.image", "redis"),
    ("cache.redis.image", "redis"),
];

/// Asks the URL that is its first argument with the token that is its second.
const ASK: &str = "import sys, urllib.request; \
    ask = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]}); \
    sys.stdout.write(urllib.request.urlopen(ask, timeout=20).read().decode())";

/// Takes the release and the namespaces of tests from a cluster that stays.
const SWEEP: &str = r#"
kubectl delete namespaces --selector "$1" --wait=false
! helm status millrace --namespace "$0" > /dev/null 2>&1 ||
    helm uninstall millrace --namespace "$0" --wait
"#;

/// Label of the namespaces that tests make.
pub const OF_TESTS: &str = "millrace.dev/of-tests";

/// A running cluster, and how it is reached.
pub struct Cluster {
    kubeconfig: PathBuf,
    network: Network,
    objects: Objects,
    /// The folder of kubectl and helm, if they are not those of the search path.
    bin: Option<PathBuf>,
    images: Images,
    /// When images are pulled.
    pull_policy: &'static str,
    /// Address of this machine that pods reach.
    address: IpAddr,
    /// For what tests keep on this machine; gone with what they made.
    scratch: PathBuf,
    /// Takes down what the tests made, and keeps other runs off until then.
    _sweeper: Sweeper,
}

impl Cluster {
    /// Makes a cluster. What a run of the same name left, which was ended too early, goes first.
    pub fn up() -> Self {
        let (name, slot) = free_slot();
        let named = |action| xtask(&[action, "--name", &name]);
        let scratch = std::env::temp_dir().join(format!("millrace-{name}"));
        let sweeper = Sweeper::start(Sweep {
            command: &named("down"),
            scratch: &scratch,
            log: slot,
        });
        for action in ["down", "up", "images"] {
            let done = named(action).status().unwrap();
            assert!(done.success(), "cargo xtask cluster {action} failed");
        }
        let printed = xtask(&["env", "--json", "--name", &name]).output().unwrap();
        let places: Value = serde_json::from_slice(&printed.stdout).expect("env prints JSON");
        let place = |key: &str| PathBuf::from(places[key].as_str().expect("a path"));
        let (kubeconfig, network) = (place("kubeconfig"), Network::Namespace(place("netns")));
        let mut cluster = Self {
            objects: Objects::new(&kubeconfig, network.clone()),
            kubeconfig,
            network,
            bin: Some(place("bin")),
            images: Images::loaded(),
            pull_policy: "Never",
            address: IpAddr::from([127, 0, 0, 1]),
            scratch,
            _sweeper: sweeper,
        };
        let address = "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}";
        let address = cluster.kubectl(&["get", "nodes", "-o", address]);
        cluster.address = address.parse().expect("the node's address");
        cluster
    }

    /// Takes the user's cluster, which must not have a release of its own.
    pub fn found(theirs: Theirs) -> Self {
        let Theirs {
            kubeconfig,
            images,
            address,
        } = theirs;
        let lock = File::create(std::env::temp_dir().join("millrace-e2e-theirs.log")).unwrap();
        // One run at a time, and none before the sweeper of the one before is done.
        lock.lock().unwrap();
        let installed = Command::new("helm")
            .args(["status", "millrace", "--namespace", SYSTEM])
            .env("KUBECONFIG", &kubeconfig)
            .output()
            .expect("helm is on the search path");
        assert!(
            !installed.status.success(),
            "the cluster of {KUBECONFIG} has a release millrace in {SYSTEM}, which these tests \
             would change and take away: name a cluster without one"
        );
        let scratch = std::env::temp_dir().join("millrace-e2e-theirs");
        let mut command = Command::new("sh");
        command
            .args(["-c", SWEEP, SYSTEM, OF_TESTS])
            .env("KUBECONFIG", &kubeconfig);
        let sweeper = Sweeper::start(Sweep {
            command: &command,
            scratch: &scratch,
            log: lock,
        });
        Self {
            objects: Objects::new(&kubeconfig, Network::Machine),
            kubeconfig,
            network: Network::Machine,
            bin: None,
            images,
            pull_policy: "IfNotPresent",
            address,
            scratch,
            _sweeper: sweeper,
        }
    }

    /// The network in which it is reached.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Listens at a free port of this machine that its pods reach.
    pub fn listen(&self) -> TcpListener {
        let ip = self.address;
        let bound = self.network.within(|| TcpListener::bind((ip, 0)));
        bound.unwrap_or_else(|error| {
            panic!("{ip}, where pods are to find this machine, cannot be listened at: {error}")
        })
    }

    /// An address of this machine that its pods reach, at a port where nobody listens now.
    pub fn free_address(&self) -> SocketAddr {
        self.listen().local_addr().expect("the port")
    }

    /// The address of this machine that its pods reach.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The folder for what tests keep on this machine.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The reference of an image of ours, by its name.
    pub fn image(&self, name: &str) -> String {
        self.images.named(name)
    }

    /// Installs the chart as a user would.
    pub fn install(&self) {
        self.upgrade(&[]);
    }

    /// Installs the chart with further settings.
    pub fn upgrade(&self, settings: &[&str]) {
        self.upgrade_to(&repository().join("charts/millrace"), settings);
    }

    /// Installs another version of the chart.
    pub fn upgrade_to(&self, chart: &Path, settings: &[&str]) {
        let mut helm = self.inside("helm");
        helm.args(["upgrade", "--install", "millrace"])
            .arg(chart)
            .args(["--namespace", SYSTEM, "--create-namespace"])
            .args(["--wait", "--timeout", "120s"])
            .args(["--set", "leases.ttlMilliseconds=2000"])
            .args(["--set", &format!("images.pullPolicy={}", self.pull_policy)]);
        for (value, name) in IMAGES {
            helm.args(["--set", &format!("{value}={}", self.images.named(name))]);
        }
        helm.args(settings);
        expect(&mut helm);
    }

    /// Takes the chart away as a user would.
    pub fn uninstall(&self) {
        let mut helm = self.inside("helm");
        helm.args(["uninstall", "millrace", "--namespace", SYSTEM, "--wait"]);
        expect(&mut helm);
    }

    /// A program of the cluster's own folder, or of the machine, in the cluster's network.
    pub fn inside(&self, program: &str) -> Command {
        let own = self.bin.as_ref().map(|bin| bin.join(program));
        let own = own.filter(|own| own.exists());
        let program = own.unwrap_or_else(|| program.into());
        let mut command = self.network.command(&program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// A program of the machine in the cluster's network, which the kernel ends with the thread that
    /// starts it.
    pub fn tied(&self, program: &str) -> Command {
        let mut command = self.inside("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    }

    /// Asks a URL with a token, from where the cluster is reached; prints what it is told.
    pub fn ask(&self, url: &str, token: &str) -> Output {
        let mut python = self.inside("python3");
        python.args(["-c", ASK, url, token]).output().unwrap()
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

    /// An object, as in `batchjob/embed`, if it is there and the cluster can tell.
    pub fn get(&self, namespace: &str, object: &str) -> Option<Value> {
        let (kind, name) = object.split_once('/').expect("a kind and a name");
        self.objects.get(namespace, kind, name).ok().flatten()
    }

    /// The objects of a kind that have these labels.
    pub fn list(&self, namespace: &str, kind: &str, selector: &str) -> Vec<Value> {
        let listed = self.objects.list(namespace, kind, selector);
        listed.unwrap_or_else(|error| panic!("{kind} of {namespace}: {error}"))
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

/// A name that no other run uses now, and the file whose lock says so.
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

/// The built xtask at a cluster, not `cargo xtask`: that would wait for whoever builds. It ends with this process,
/// lest it make what the sweeper has just taken down.
pub fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(binary("xtask"))
        .arg("cluster")
        .args(arguments)
        .env("CARGO_MANIFEST_DIR", repository().join("xtask"))
        .stdin(Stdio::null());
    command
}

fn expect(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
