//! One API server for all tests of this program.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use millrace_e2e::files::repository;
use millrace_e2e::process::{PATIENCE, binary, until};
use millrace_e2e::skips::skip;
use serde_json::Value;

/// An API server. It ends when this process does, however that ends: its input is a pipe from here.
pub struct ControlPlane {
    kubeconfig: PathBuf,
    bin: PathBuf,
    _child: Child,
}

/// The API server, with the CRDs of this build; `None`, with a note of the skipped test, where its
/// programs are not built.
pub fn control_plane() -> Option<&'static ControlPlane> {
    static SHARED: OnceLock<Option<ControlPlane>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let started = ControlPlane::start_if_built()?;
        apply_crds(&started);
        Some(started)
    });
    or_skipped(shared.as_ref())
}

fn or_skipped<T>(started: Option<T>) -> Option<T> {
    if started.is_none() {
        skip("Kubernetes is not built; `cargo xtask cluster control-plane` builds it");
    }
    started
}

/// Brings the CRDs of this build to an API server.
pub fn apply_crds(api: &ControlPlane) {
    for plural in ["batchjobs", "inferenceservices"] {
        let file = repository().join(format!("crds/generated/{plural}.yaml"));
        let file = file.to_str().unwrap();
        api.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", file]);
        let crd = format!("crd/{plural}.millrace.dev");
        // One that was made a moment ago has no conditions yet, which `wait` takes for an error.
        let served = until(PATIENCE, || {
            let waited = api.try_kubectl(&["wait", "--for=condition=Established", &crd]);
            waited.status.success().then_some(())
        });
        assert!(served.is_some(), "{crd} is not served");
    }
}

impl ControlPlane {
    /// Starts an API server without CRDs; `None`, with a note of the skipped test, where it is not
    /// built.
    pub fn start() -> Option<Self> {
        or_skipped(Self::start_if_built())
    }

    fn start_if_built() -> Option<Self> {
        let mut child = Command::new(binary("xtask"))
            .args(["cluster", "control-plane", "--if-built"])
            .env("CARGO_MANIFEST_DIR", repository().join("xtask"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("xtask starts");
        let stdout = child.stdout.take().expect("it is piped");
        // Before the line comes whatever its set-up has to say.
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let Some(line) = lines.find(|line| line.starts_with('{')) else {
            let ended = child.wait().unwrap();
            assert!(ended.success(), "the API server does not start: {ended}");
            return None;
        };
        let places: Value = serde_json::from_str(&line).expect("a line of JSON");
        let place = |key: &str| PathBuf::from(places[key].as_str().expect("a path"));
        Some(Self {
            kubeconfig: place("kubeconfig"),
            bin: place("bin"),
            _child: child,
        })
    }

    /// A client with all rights, for the runtime that calls.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).expect("the kubeconfig");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        Client::try_from(config.expect("a configuration")).expect("a client")
    }

    /// Calls kubectl, which must succeed; gives what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Calls kubectl, whatever comes of it.
    fn try_kubectl(&self, arguments: &[&str]) -> Output {
        Command::new(self.bin.join("kubectl"))
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .output()
            .unwrap()
    }
}
