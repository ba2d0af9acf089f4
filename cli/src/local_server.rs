//! The server of a local run: this project's own as a supervised child on a Unix socket in a private
//! folder, or a foreign one that runs already and is left alone. An API elsewhere has none.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use millrace_answers::disk::{Disk, DiskOptions};
use millrace_crds::InferenceService;
use millrace_leases::LeaseError;
use millrace_leases::limits::{Limiter, MemoryLimiter};
use millrace_supervisor::{Address, CommandSpec, Handle, Probe, Supervisor};
use millrace_worker::manifests::Loaded;
use millrace_worker::metrics::Metrics;
use millrace_worker::secrets::Secrets;
use millrace_worker::store::LinkLocal;
use millrace_worker::work::call::{Caches, CachesOptions, Gates, minute_from_env};
use millrace_worker::work::client::remote::Access;
use millrace_worker::work::client::{ServerAddress, ServerUrl};
use tempfile::TempDir;

/// Deaths before it was ever ready after which the server is given up. A broken model says so by
/// its exit code at the first one; the rest are accidents of a busy machine.
const EARLY_DEATHS_MAX: u32 = 10;

/// Most bytes of the answers of APIs elsewhere that are kept in a folder, unless the command line says.
const CACHE_FOLDER_BYTES_MAX: u64 = 1 << 30;

/// Folder of those answers in the folder of all that are kept.
const REMOTE_ANSWERS: &str = "remote";

/// Which server answers the rows, as the command line says.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Binary of the inference-server; by default the one beside this program.
    #[arg(long, env = "MILLRACE_INFERENCE_SERVER", value_name = "PATH")]
    inference_server: Option<PathBuf>,
    /// Server that answers the rows of a service with spec.runtime, such as http://127.0.0.1:8000.
    /// It must run already.
    #[arg(long, env = "MILLRACE_SERVER_URL", value_name = "URL")]
    server_url: Option<ServerUrl>,
    /// Folder in which answers are kept over runs, for spec.cache.ttlSeconds: texts that come again are
    /// not computed again, and of an API (spec.remote) not paid again. One run at a time uses it.
    #[arg(long, value_name = "FOLDER")]
    cache_folder: Option<PathBuf>,
    /// Most bytes in that folder; what was used least lately goes first [default: 1 GiB].
    #[arg(long, value_name = "BYTES", requires = "cache_folder")]
    cache_folder_max_bytes: Option<u64>,
}

/// Who answers the rows of a local run.
pub struct Answering {
    /// Which server does.
    pub origin: Origin,
    /// Where answers are kept over runs, if they are.
    pub cache: Option<CacheFolder>,
}

/// Which server answers the rows of a local run.
pub enum Origin {
    /// A child of this program, by its binary.
    Child(PathBuf),
    /// One that somebody else started.
    Running(ServerUrl),
    /// None: an API elsewhere answers.
    Remote,
}

/// A folder of kept answers.
pub struct CacheFolder {
    path: PathBuf,
    /// Most bytes in it, unless the server's own bound will do.
    bytes_max: Option<u64>,
}

/// A running server. A child is stopped when this is dropped, and killed by the kernel if this
/// process dies.
pub struct LocalServer {
    address: ServerAddress,
    child: Option<Child>,
    /// How APIs elsewhere are asked.
    access: Access,
}

struct Child {
    handle: Handle,
    /// Holds socket and service file; removed last.
    _folder: TempDir,
}

impl LocalServer {
    /// Starts the server for `service`, which is the one of `loaded` with models that are here, or takes the
    /// one that is there.
    pub async fn start(
        answering: &Answering,
        service: &InferenceService,
        loaded: &Loaded,
    ) -> anyhow::Result<Self> {
        let Answering { origin, cache } = answering;
        let access = access(loaded, cache.as_ref()).await?;
        let program = match origin {
            Origin::Child(program) => program,
            Origin::Running(url) => {
                return Ok(Self {
                    address: ServerAddress::Url(url.clone()),
                    child: None,
                    access,
                });
            }
            Origin::Remote => {
                return Ok(Self {
                    address: ServerAddress::Remote(access.clone()),
                    child: None,
                    access,
                });
            }
        };
        let folder = tempfile::Builder::new().prefix("millrace-").tempdir()?;
        // Whoever can reach the socket can use the models, so the folder is ours alone.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700))?;
        let service_file = folder.path().join("service.json");
        let mut service = absolute_sources(service, &loaded.base);
        // Whoever names a folder wants answers kept.
        service.spec.cache.enabled |= cache.is_some();
        let service = serde_json::to_vec(&service)?;
        std::fs::write(&service_file, service)?;
        let socket = folder.path().join("server.sock");
        let command = command(program, &service_file, &socket, cache.as_ref());
        let handle =
            Supervisor::start(command).context("the inference-server cannot be supervised")?;
        Ok(Self {
            address: ServerAddress::Socket(socket),
            child: Some(Child {
                handle,
                _folder: folder,
            }),
            access,
        })
    }

    /// Where the server listens, and how the APIs elsewhere are asked `with_others`.
    pub fn address(&self, with_others: bool) -> ServerAddress {
        match (&self.address, with_others) {
            (server @ (ServerAddress::Socket(_) | ServerAddress::Url(_)), true) => {
                ServerAddress::Beside(Box::new(server.clone()), self.access.clone())
            }
            (address, _) => address.clone(),
        }
    }

    /// Waits until a child was ready for the first time. From then on it is started again whatever
    /// it dies of, so that a row that kills it can be found.
    pub async fn ready(&self) -> anyhow::Result<()> {
        match &self.child {
            Some(child) => Ok(child.handle.ready().await?),
            None => Ok(()),
        }
    }

    /// Waits until a child is given up and says why.
    pub async fn failed(&self) -> anyhow::Error {
        match &self.child {
            Some(child) => anyhow::Error::new(child.handle.failed().await),
            None => std::future::pending().await,
        }
    }

    /// Stops a child and waits for its end, and until answers are kept.
    pub async fn stop(self) {
        self.access.caches.flush().await;
        if let Some(child) = self.child {
            child.handle.stop().await;
        }
    }
}

/// How the server is started.
fn command(
    program: &Path,
    service_file: &Path,
    socket: &Path,
    cache: Option<&CacheFolder>,
) -> CommandSpec {
    let mut spec = CommandSpec::new(program);
    spec.args = vec![
        "--service".into(),
        service_file.into(),
        "--uds".into(),
        socket.into(),
    ];
    if let Some(CacheFolder { path, bytes_max }) = cache {
        spec.args.extend(["--cache-folder".into(), path.into()]);
        if let Some(bytes) = bytes_max {
            let bytes = bytes.to_string();
            spec.args
                .extend(["--cache-folder-max-bytes".into(), bytes.into()]);
        }
    }
    // Only this process may reach the server, and it is the one that restarts it.
    spec.env_remove = vec!["MILLRACE_LISTEN".into(), "MILLRACE_SUPERVISE".into()];
    spec.early_deaths_max = EARLY_DEATHS_MAX;
    if std::env::var_os("MILLRACE_LOG").is_none() {
        // Why a server cannot run is the error that the command ends with.
        spec.quiet_until_ready = true;
        // The server's milestones would tear the progress bar.
        spec.env.push(("MILLRACE_LOG".into(), "warn".into()));
    }
    spec.probe = Some(Probe {
        address: Address::Unix(socket.to_owned()),
        path: "/ready".to_owned(),
    });
    spec
}

/// The service with model folders that no longer depend on where its manifest lay.
pub fn absolute_sources(service: &InferenceService, base: &Path) -> InferenceService {
    let mut service = service.clone();
    for model in &mut service.spec.models {
        if !model.source.uri.contains("://") {
            model.source.uri = base.join(&model.source.uri).display().to_string();
        }
    }
    service
}

/// Why no server can be had for the service in this way.
pub fn misfit(service: &InferenceService, args: &ServerArgs) -> Option<&'static str> {
    let url = args.server_url.as_ref();
    if args.cache_folder.is_some() && service.spec.runtime.is_some() {
        return Some(
            "--cache-folder: the rows of the service are answered by a server of its own, whose answers \
             are not kept; leave the option out",
        );
    }
    if service.spec.remote.is_some() && url.is_some() {
        return Some(
            "--server-url: the rows of the service are answered by an API elsewhere (spec.remote); \
             leave the option out",
        );
    }
    match (&service.spec.runtime, url) {
        (Some(_), None) => Some(
            "spec.runtime: a local run does not start the image of a service; start it yourself, and \
             name it with --server-url http://127.0.0.1:PORT",
        ),
        (None, Some(_)) => Some(
            "--server-url: the service has models of its own, for which a server is started; leave \
             the option out",
        ),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

/// Whether nothing is amiss but that nobody named the server, which somebody else starts.
pub fn awaits_url(service: &InferenceService, args: &ServerArgs) -> bool {
    service.spec.runtime.is_some() && args.server_url.is_none() && args.cache_folder.is_none()
}

/// The server that is named, or the one to start.
pub fn answering(service: &InferenceService, args: ServerArgs) -> anyhow::Result<Answering> {
    let ServerArgs {
        inference_server,
        server_url,
        cache_folder,
        cache_folder_max_bytes,
    } = args;
    let origin = match server_url {
        Some(url) => Origin::Running(url),
        None if service.spec.remote.is_some() => Origin::Remote,
        None => Origin::Child(program(inference_server)?),
    };
    let cache = cache_folder.map(|path| CacheFolder {
        path,
        bytes_max: cache_folder_max_bytes,
    });
    Ok(Answering { origin, cache })
}

impl ServerArgs {
    /// The same, without answers of earlier runs: what is measured is what computing takes.
    pub fn without_cache(self) -> Self {
        Self {
            cache_folder: None,
            ..self
        }
    }
}

/// How this process, which has the limits to itself, asks the APIs elsewhere of a job.
async fn access(loaded: &Loaded, cache: Option<&CacheFolder>) -> anyhow::Result<Access> {
    let limiter = |_: &str| -> Result<Arc<dyn Limiter>, LeaseError> {
        Ok(Arc::new(MemoryLimiter::new(minute_from_env())))
    };
    let metrics = Metrics::default();
    let lookups = metrics.cache_lookups();
    let ttls = loaded.job.remotes().map(|remote| remote.cache.ttl_seconds);
    let disk = match (cache, ttls.min()) {
        (Some(CacheFolder { path, bytes_max }), Some(ttl_seconds)) => {
            let options = DiskOptions {
                folder: path.join(REMOTE_ANSWERS),
                bytes_max: bytes_max.unwrap_or(CACHE_FOLDER_BYTES_MAX),
            };
            let ttl = Duration::from_secs(ttl_seconds.into());
            let opened = Disk::open(options, ttl, lookups.clone()).await;
            opened.context("--cache-folder cannot be used: name another one")?
        }
        (None, _) | (_, None) => None,
    };
    let caches = CachesOptions {
        namespace: loaded.job.namespace.clone(),
        redis_url: None,
        disk: disk.map(Arc::new),
        lookups,
    };
    Ok(Access {
        secrets: Secrets::Environment,
        gates: Arc::new(Gates::new(limiter)),
        caches: Arc::new(Caches::new(caches)),
        metrics,
        link_local: LinkLocal::Allowed,
    })
}

/// The server's binary: what the user names, else the one beside this program.
fn program(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
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
