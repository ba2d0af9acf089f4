//! A real Redis server on a loopback port, with its data in a folder of its own.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::starting::{answering, on_free_port};

/// How long a server may take to answer after its start, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A server as the leases want it (append-only file, no eviction); killed when dropped.
pub struct RedisServer {
    child: Option<Child>,
    port: u16,
    folder: TempDir,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the server's data");
        let started = on_free_port(|port| Some((port, spawn(port, &folder)?)));
        if let Some((port, child)) = started {
            return Self {
                child: Some(child),
                port,
                folder,
            };
        }
        panic!(
            "redis-server did not start; its log stands in {}",
            folder.keep().display()
        );
    }

    /// `redis://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server in an orderly way; its data stays.
    pub fn stop(&mut self) {
        self.signal("TERM");
        if let Some(mut child) = self.child.take() {
            child.wait().expect("the server's end");
        }
    }

    /// Kills the server; its data stays, but for the last of it.
    pub fn kill(&mut self) {
        self.signal("KILL");
        if let Some(mut child) = self.child.take() {
            child.wait().expect("the server's end");
        }
    }

    /// Starts a stopped server again, on the same port and data.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server runs");
        let child = spawn(self.port, &self.folder);
        self.child = Some(child.expect("the server starts again on its port"));
    }

    /// Stops the server's process in its tracks: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Runs one command, such as `["CONFIG", "SET", "maxmemory", "1"]`, over a connection of its own.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.command_as(&self.url(), words)
            .expect("the command succeeds")
    }

    /// A connection to keep, for a test of many commands.
    pub fn connection(&self) -> redis::Connection {
        connect(&self.url()).expect("the server accepts")
    }

    /// Runs one command as the user whom a URL names.
    pub fn command_as<T: redis::FromRedisValue>(
        &self,
        url: &str,
        words: &[&str],
    ) -> redis::RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut connect(url)?)
    }

    fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("the server runs").id();
        let kill = format!("kill -{name} {id}");
        let status = Command::new("sh")
            .args(["-c", &kill])
            .status()
            .expect("sh runs");
        assert!(status.success(), "{kill}");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The kill reaches a frozen process too; it fails only for one that has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A server that answers on `port`, or nothing where it ended at once, as for a port in use.
fn spawn(port: u16, folder: &TempDir) -> Option<Child> {
    let child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--dir", &folder.path().to_string_lossy(), "--logfile", "redis.log"])
        .args(["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--save", ""])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("redis-server cannot be run ({error}): install the package redis-server, 7.0 or later")
        });
    answering(child, START_TIMEOUT, || is_ready(port))
}

/// Whether the server answers, and not only to say that it is loading.
fn is_ready(port: u16) -> bool {
    connect(&format!("redis://127.0.0.1:{port}"))
        .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection))
        .is_ok()
}

fn connect(url: &str) -> redis::RedisResult<redis::Connection> {
    let client = redis::Client::open(url)?;
    let connection = client.get_connection_with_timeout(START_TIMEOUT)?;
    connection.set_read_timeout(Some(START_TIMEOUT))?;
    Ok(connection)
}
