//! A tenant's S3 server, on this machine, at an address that pods reach.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millrace_e2e::starting::answering;
use tempfile::TempDir;

use crate::cluster::Cluster;

/// The bucket of every server.
pub const BUCKET: &str = "bucket";

/// How long a server may take to answer after its start, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to accept, once it listens.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Ports tried before giving up: another process may take a free one before the server does.
const STARTS_MAX: usize = 5;

/// A server at the address that is its argument: it has nothing to say but 503.
const REFUSING_SERVER: &str = r#"
import http.server, socket, sys
class Refuse(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer
    def log_message(self, *ignored): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
Server((sys.argv[1], int(sys.argv[2])), Refuse).serve_forever()
"#;

/// A server; gone with its objects when dropped, or when this process ends, however it does.
pub struct Store<'a> {
    cluster: &'a Cluster,
    address: SocketAddr,
    /// Its user. Each server has another, so that whoever still looks for an earlier one that was at
    /// the same address is refused.
    user: String,
    process: Child,
    folder: TempDir,
}

impl<'a> Store<'a> {
    /// Starts a server with an empty bucket.
    pub fn start(cluster: &'a Cluster, user: &str) -> Self {
        let folder = tempfile::tempdir_in(cluster.scratch()).unwrap();
        std::fs::create_dir_all(folder.path().join("objects").join(BUCKET)).unwrap();
        let mut tries = (0..STARTS_MAX).map(|_| {
            let address = cluster.free_address();
            let server = s3_server(cluster, address, user, &folder);
            started(cluster, server, address, &folder).map(|process| (address, process))
        });
        let (address, process) = tries.find_map(Result::ok).unwrap_or_else(|| {
            let log = std::fs::read_to_string(folder.path().join("log"));
            panic!(
                "versitygw does not start; it says: {}",
                log.unwrap_or_default()
            );
        });
        Self {
            cluster,
            address,
            user: user.to_owned(),
            process,
            folder,
        }
    }

    /// The variables by which it is found, from the pods and from outside of them.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", self.user.clone()),
            ("AWS_SECRET_ACCESS_KEY", secret_of(&self.user)),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// The folder that holds the bucket's objects as files.
    pub fn bucket(&self) -> PathBuf {
        self.folder.path().join("objects").join(BUCKET)
    }

    /// A folder beside the bucket.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a server that answers 503 to everything in its place for a while.
    pub fn refuse_for(&mut self, seconds: u64) {
        self.end();
        let mut refusing = self.cluster.tied("python3");
        refusing.args(["-c", REFUSING_SERVER]);
        refusing.args([
            self.address.ip().to_string(),
            self.address.port().to_string(),
        ]);
        self.process = self.in_its_place(refusing);
        std::thread::sleep(Duration::from_secs(seconds));
        self.end();
        self.process = self.in_its_place(s3_server(
            self.cluster,
            self.address,
            &self.user,
            &self.folder,
        ));
    }

    /// Starts another server at the same address.
    fn in_its_place(&self, server: Command) -> Child {
        let started = started(self.cluster, server, self.address, &self.folder);
        started.unwrap_or_else(|said| panic!("nothing answers at {}: {said}", self.address))
    }

    fn end(&mut self) {
        // It fails only for one that has ended already.
        self.process.kill().ok();
        self.process.wait().expect("the server's end");
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn secret_of(user: &str) -> String {
    format!("{user}-secret")
}

fn s3_server(cluster: &Cluster, address: SocketAddr, user: &str, folder: &TempDir) -> Command {
    let versitygw = std::env::var("MILLRACE_VERSITYGW").expect("cargo xtask test sets it");
    let mut command = cluster.tied(&versitygw);
    command
        .args(["--port", &address.to_string(), "posix"])
        .arg(folder.path().join("objects"))
        .env("ROOT_ACCESS_KEY", user)
        .env("ROOT_SECRET_KEY", secret_of(user));
    command
}

/// The server once it answers at its address, or what it said before it ended or took too long.
fn started(
    cluster: &Cluster,
    mut server: Command,
    address: SocketAddr,
    folder: &TempDir,
) -> Result<Child, String> {
    let file = folder.path().join("log");
    let log = File::create(&file).expect("a log");
    let child = server
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle of the log"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{server:?} cannot be started: {error}"));
    let answers = || {
        let connect = || TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
        cluster.network().within(connect).is_ok()
    };
    let said = || std::fs::read_to_string(&file).unwrap_or_default();
    answering(child, START_TIMEOUT, answers).ok_or_else(said)
}
