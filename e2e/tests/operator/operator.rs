//! The operator's own process, behind a proxy, in one namespace.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use millrace_e2e::api_proxy::{ApiProxy, Point};
use millrace_e2e::process::{PATIENCE, Process, binary};
use millrace_e2e::starting::free_address;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What an operator is started with.
pub struct Options<'a> {
    /// The namespace that it watches, and in which it stands for election.
    pub namespace: &'a str,
    /// Where the leases are.
    pub redis_url: &'a str,
    /// By what name it stands for election.
    pub identity: &'a str,
    /// Where the proxy strikes.
    pub point: Option<Point>,
}

/// An operator that is started again when its proxy kills it, under the same name, as a kubelet
/// starts a container again.
pub struct Operator {
    /// What it writes passes here.
    pub proxy: Arc<ApiProxy>,
    /// Where it is asked for backlogs.
    address: SocketAddr,
    /// Where it is asked how far jobs are.
    pub api: SocketAddr,
    process: Process,
    program: Program,
}

/// What it says where a port is somebody else's.
const PORT_TAKEN: &str = "cannot be listened on";

/// Most further starts while its port is somebody else's.
const STARTS_MAX: usize = 100;

/// How the process is started each time.
struct Program {
    arguments: Vec<String>,
    folder: TempDir,
}

impl Operator {
    /// Starts it. Returns once it can be asked, or has ended.
    pub async fn start(client: Client, options: Options<'_>) -> Self {
        let proxy = Arc::new(ApiProxy::start(client, options.point).await);
        for _ in 0..STARTS_MAX {
            let mut operator = Self::start_behind(proxy.clone(), &options);
            if operator.has_its_ports().await {
                return operator;
            }
        }
        panic!("every port is somebody else's");
    }

    fn start_behind(proxy: Arc<ApiProxy>, options: &Options<'_>) -> Self {
        let &Options {
            namespace,
            redis_url,
            identity,
            point: _,
        } = options;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), proxy.kubeconfig()).unwrap();
        let (address, api) = (free_address(), free_address());
        let (listen, api_listen) = (address.to_string(), api.to_string());
        let settings = [
            ("watch-namespace", namespace),
            ("namespace", namespace),
            ("identity", identity),
            ("redis-url", redis_url),
            ("worker-image", "worker"),
            ("server-image", "server"),
            ("listen", &listen),
            ("api-listen", &api_listen),
        ];
        let arguments = settings.map(|(name, value)| format!("--{name}={value}"));
        let program = Program {
            arguments: arguments.to_vec(),
            folder,
        };
        let process = program.start();
        proxy.aim(process.pid());
        Self {
            proxy,
            address,
            api,
            process,
            program,
        }
    }

    /// Waits until it can be asked, or has ended. Says whether its ports were free: another process may take
    /// them before it does.
    async fn has_its_ports(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.process.ended().is_none() {
            let both = [self.address, self.api].map(TcpStream::connect);
            if futures::future::try_join_all(both).await.is_ok() {
                return true;
            }
            assert!(Instant::now() < deadline, "it hangs:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        !self.log().contains(PORT_TAKEN)
    }

    /// Starts it again each time its proxy killed it. Returns when it ends by itself, with its log.
    pub async fn keep(&mut self) -> String {
        let (mut kills, mut starts) = (0, 0);
        loop {
            if let Some(status) = self.process.ended() {
                let was_killed = self.proxy.has_struck() && kills == 0;
                // Between two starts somebody's connection may have taken the port for a while.
                let taken = self.log().matches(PORT_TAKEN).count();
                let is_port_taken = taken > starts && starts < STARTS_MAX;
                match (was_killed, is_port_taken) {
                    (_, true) => starts += 1,
                    (true, false) => kills += 1,
                    (false, false) => {
                        return format!("the operator ended, {status}:\n{}", self.log());
                    }
                }
                self.process = self.program.start();
                self.proxy.aim(self.process.pid());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// Waits for its end. Says whether it was a success.
    pub async fn ended(&mut self, patience: Duration) -> Option<bool> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.process.ended() {
                return Some(status.success());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// What it answers to a GET of this path, head and all.
    pub async fn ask(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: operator\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until it leads. Says whether it does.
    pub async fn leads(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.log().contains("this process leads") {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// What its processes printed.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Program {
    fn start(&self) -> Process {
        let log: PathBuf = self.folder.path().join("log");
        // The kernel ends it with this process, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(binary("millrace-operator"))
            .args(&self.arguments)
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env_remove("KUBERNETES_SERVICE_HOST");
        Process::start(command, log)
    }
}
