//! The inference-server of a local run: a supervised child on a Unix socket in a private folder.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use millrace_crds::InferenceService;
use millrace_supervisor::{Address, CommandSpec, Handle, Probe, Supervisor};
use millrace_worker::work::client::Client;
use tempfile::TempDir;

/// Deaths before it was ever ready after which the server is given up. A broken model says so by
/// its exit code at the first one; the rest are accidents of a busy machine.
const EARLY_DEATHS_MAX: u32 = 10;

/// A running inference-server. Stopped when dropped, and killed by the kernel if this process dies.
pub struct LocalServer {
    handle: Handle,
    client: Client,
    /// Holds socket and service file; removed last.
    _folder: TempDir,
}

impl LocalServer {
    /// Starts the server for `service`, whose relative paths are taken from `base`.
    pub fn start(program: &Path, service: &InferenceService, base: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("millrace-").tempdir()?;
        // Whoever can reach the socket can use the models, so the folder is ours alone.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700))?;
        let service_file = folder.path().join("service.json");
        let service = serde_json::to_vec(&absolute_sources(service, base))?;
        std::fs::write(&service_file, service)?;
        let socket = folder.path().join("server.sock");
        let mut spec = CommandSpec::new(program);
        spec.args = vec![
            "--service".into(),
            service_file.into(),
            "--uds".into(),
            socket.clone().into(),
        ];
        // Only this process may reach the server, and it is the one that restarts it.
        spec.env_remove = vec!["MILLRACE_LISTEN".into(), "MILLRACE_SUPERVISE".into()];
        spec.early_deaths_max = EARLY_DEATHS_MAX;
        if std::env::var_os("MILLRACE_LOG").is_none() {
            // The server's milestones would tear the progress bar.
            spec.env.push(("MILLRACE_LOG".into(), "warn".into()));
        }
        let address = Address::Unix(socket.clone());
        spec.probe = Some(Probe {
            address,
            path: "/ready".to_owned(),
        });
        let handle =
            Supervisor::start(spec).context("the inference-server cannot be supervised")?;
        Ok(Self {
            handle,
            client: Client::new(socket),
            _folder: folder,
        })
    }

    /// The way to the server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Waits until the server was ready for the first time. From then on it is started again
    /// whatever it dies of, so that a row that kills it can be found.
    pub async fn ready(&self) -> anyhow::Result<()> {
        Ok(self.handle.ready().await?)
    }

    /// Waits until the server is given up and says why.
    pub async fn failed(&self) -> anyhow::Error {
        anyhow::Error::new(self.handle.failed().await)
    }

    /// Stops the server and waits for its end.
    pub async fn stop(self) {
        self.handle.stop().await;
    }
}

/// The service with model folders that no longer depend on where its manifest lay.
fn absolute_sources(service: &InferenceService, base: &Path) -> InferenceService {
    let mut service = service.clone();
    for model in &mut service.spec.models {
        if !model.source.uri.contains("://") {
            model.source.uri = base.join(&model.source.uri).display().to_string();
        }
    }
    service
}

/// The server's binary: what the user names, else the one beside this program.
pub fn program(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        anyhow::ensure!(
            named.exists(),
            "--inference-server: {} does not exist",
            named.display()
        );
        return Ok(named);
    }
    let beside = std::env::current_exe()?.with_file_name("millrace-inference-server");
    anyhow::ensure!(
        beside.exists(),
        "{} is missing; build it with `cargo build --release -p millrace-inference-server`, or name \
         another with --inference-server",
        beside.display()
    );
    Ok(beside)
}
