//! A real S3 server for tests: versitygw over a temporary folder.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use millrace_worker::store::{StoreOptions, Stores};
use object_store::aws::AmazonS3ConfigKey as Key;
use tempfile::TempDir;

const ACCESS_KEY: &str = "millrace-test";
const SECRET_KEY: &str = "millrace-test-secret";

/// The bucket that every server has.
pub const BUCKET: &str = "bucket";

/// Killed when dropped, and its folder deleted.
pub struct S3Server {
    process: Child,
    port: u16,
    _folder: TempDir,
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
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let process = Command::new(binary())
            .args(["--port", &format!("127.0.0.1:{port}"), "posix"])
            .arg(folder.path())
            .env("ROOT_ACCESS_KEY", ACCESS_KEY)
            .env("ROOT_SECRET_KEY", SECRET_KEY)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self {
            process,
            port,
            _folder: folder,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if server.process.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Stores that reach this server.
    pub fn stores(&self) -> Stores {
        self.stores_as(SECRET_KEY)
    }

    /// Stores whose secret key is wrong.
    pub fn stores_without_access(&self) -> Stores {
        self.stores_as("wrong")
    }

    fn stores_as(&self, secret_key: &str) -> Stores {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let options = [
            (Key::AccessKeyId, ACCESS_KEY),
            (Key::SecretAccessKey, secret_key),
            (Key::Region, "us-east-1"),
            (Key::Endpoint, endpoint.as_str()),
            (
                Key::Client(object_store::ClientConfigKey::AllowHttp),
                "true",
            ),
        ];
        let s3 = options
            .into_iter()
            .map(|(key, value)| (key, value.to_owned()))
            .collect();
        Stores::new(StoreOptions {
            s3,
            file_roots: Vec::new(),
        })
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn binary() -> PathBuf {
    let installed = || {
        let home = std::env::var_os("HOME").unwrap_or_default();
        Path::new(&home).join(".cache/millrace/bin/versitygw")
    };
    let path = std::env::var_os("MILLRACE_VERSITYGW").map_or_else(installed, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: `cargo xtask setup` installs it",
        path.display()
    );
    path
}
