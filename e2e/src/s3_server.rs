//! A real S3 server for tests: versitygw over a temporary folder.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::starting::{answering, on_free_port};

/// How long a server may take to listen after its start, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);

const ACCESS_KEY: &str = "millrace-test";
const SECRET_KEY: &str = "millrace-test-secret";

/// The bucket that every server has.
pub const BUCKET: &str = "bucket";

/// Killed when dropped, and its folder deleted.
pub struct S3Server {
    process: Child,
    port: u16,
    folder: TempDir,
    secret_key: String,
}

impl S3Server {
    /// Starts a server with an empty bucket.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let started = on_free_port(|port| Some((port, spawn(port, folder.path(), SECRET_KEY)?)));
        let (port, process) = started.expect("versitygw does not start; run it by hand to see why");
        Self {
            process,
            port,
            folder,
            secret_key: SECRET_KEY.to_owned(),
        }
    }

    /// Starts it again on its port and folder, with another secret key than it had.
    pub fn start_again_with(&mut self, secret_key: &str) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        secret_key.clone_into(&mut self.secret_key);
        let process = spawn(self.port, self.folder.path(), secret_key);
        self.process = process.expect("it starts again on its port");
    }

    /// The variables by which the AWS tools, and millrace, find this server and its keys.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address())),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The folder that holds the bucket's objects as files.
    pub fn bucket_folder(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server that listens on `port`, or nothing where it ended at once, as for a port in use.
fn spawn(port: u16, folder: &Path, secret_key: &str) -> Option<Child> {
    let address = format!("127.0.0.1:{port}");
    let child = Command::new(binary())
        .args(["--port", &address, "posix"])
        .arg(folder)
        .env("ROOT_ACCESS_KEY", ACCESS_KEY)
        .env("ROOT_SECRET_KEY", secret_key)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    answering(child, START_TIMEOUT, || {
        TcpStream::connect(&address).is_ok()
    })
}

fn binary() -> PathBuf {
    let installed = || {
        let home = std::env::var_os("HOME").unwrap_or_default();
        Path::new(&home).join(".cache/millrace/versitygw/versitygw")
    };
    let path = std::env::var_os("MILLRACE_VERSITYGW").map_or_else(installed, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: `cargo xtask setup` installs it",
        path.display()
    );
    path
}
