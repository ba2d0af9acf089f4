//! A real S3 server for tests: versitygw over a temporary folder.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::starting::free_address;

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
        // Another process may take the free port before the server does.
        for _ in 0..5 {
            if let Some(server) = Self::try_start() {
                return server;
            }
        }
        panic!("versitygw did not start; run it by hand to see why");
    }

    fn try_start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let port = free_address().port();
        let mut server = Self {
            process: spawn(port, folder.path(), SECRET_KEY),
            port,
            folder,
            secret_key: SECRET_KEY.to_owned(),
        };
        server.answers().then_some(server)
    }

    /// Starts it again on its port and folder, with another secret key than it had.
    pub fn start_again_with(&mut self, secret_key: &str) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        secret_key.clone_into(&mut self.secret_key);
        self.process = spawn(self.port, self.folder.path(), secret_key);
        assert!(self.answers(), "it does not start again on its port");
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
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

fn spawn(port: u16, folder: &Path, secret_key: &str) -> Child {
    Command::new(binary())
        .args(["--port", &format!("127.0.0.1:{port}"), "posix"])
        .arg(folder)
        .env("ROOT_ACCESS_KEY", ACCESS_KEY)
        .env("ROOT_SECRET_KEY", secret_key)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
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
