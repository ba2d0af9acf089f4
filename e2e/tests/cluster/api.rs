//! The stand-in of a paid API, on this machine, at an address that pods reach.

use std::process::{Child, Stdio};

use millrace_e2e::process::{binary, send};
use millrace_stand_in::Record;

use crate::cluster::Cluster;

/// The key of the API, which must stand in no log and no object but its Secret.
pub const KEY: &str = "sk-not-to-be-seen";

/// A stand-in; killed when dropped.
pub struct Api<'a> {
    cluster: &'a Cluster,
    process: Child,
    address: String,
}

impl<'a> Api<'a> {
    /// Starts one that takes `latency_ms` milliseconds for each answer.
    pub fn start(cluster: &'a Cluster, latency_ms: u64) -> Self {
        let address = cluster.free_address().to_string();
        let mut command = cluster.tied(binary("millrace-stand-in").to_str().unwrap());
        command
            .args(["--listen", &address, "--api-key", KEY])
            .args(["--latency-ms", &latency_ms.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self {
            process: command.spawn().expect("the stand-in starts"),
            cluster,
            address,
        }
    }

    /// Where it is, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops it: calls in flight stay so until what this gives is dropped.
    pub fn hold(&self) -> Held<'_> {
        signal(&self.process, libc::SIGSTOP);
        Held(&self.process)
    }

    /// What it was asked so far.
    pub fn record(&self) -> Record {
        let read = "import sys, urllib.request; \
                    sys.stdout.write(urllib.request.urlopen(sys.argv[1]).read().decode())";
        let mut ask = self.cluster.inside("python3");
        ask.args(["-c", read, &format!("http://{}/record", self.address)]);
        serde_json::from_slice(&ask.output().unwrap().stdout).unwrap()
    }
}

/// A stand-in that answers nobody for now.
pub struct Held<'a>(&'a Child);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        signal(self.0, libc::SIGCONT);
    }
}

fn signal(process: &Child, signal: i32) {
    send(i32::try_from(process.id()).unwrap(), signal);
}

impl Drop for Api<'_> {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
