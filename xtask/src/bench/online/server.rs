//! A running inference-server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::bench::{Bench, is_ready};

/// How long a server may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts a server on a free port and waits until it is ready.
    pub fn start(bench: &Bench, service: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        drop(listener);
        let child = Command::new(bench.programs.join("millrace-inference-server"))
            .arg("--service")
            .arg(service)
            .args(["--listen", &address])
            .envs(bench.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { child, address };
        let started = Instant::now();
        while !is_ready(TcpStream::connect(&server.address)) {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended: {status}");
            }
            ensure!(started.elapsed() < PATIENCE, "the server is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// The URL of an endpoint.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends one request, and reads its answer.
    pub fn ask(&self, path: &str, body: &str) -> Result<Value> {
        let answer = self.send(&format!(
            "POST {path} HTTP/1.0\r\nhost: server\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))?;
        serde_json::from_str(&answer).with_context(|| format!("the server said {answer:?}"))
    }

    /// How many texts' requests it has answered, as it counts the time itself.
    pub fn answered(&self) -> Result<Answered> {
        Answered::read(&self.send("GET /metrics HTTP/1.0\r\nhost: server\r\n\r\n")?)
    }

    fn send(&self, request: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, answer) = answer
            .split_once("\r\n\r\n")
            .context("the server gave no answer")?;
        Ok(answer.to_owned())
    }
}

/// Requests about texts that were answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answered {
    all: f64,
    /// Those in 2 ms.
    soon: f64,
}

impl Answered {
    /// Reads the metrics of a server.
    fn read(metrics: &str) -> Result<Self> {
        let value = |name: &str, bound: &str| {
            let line = metrics.lines().find(|line| {
                let of_texts = line.contains(r#"endpoint="/{model}/batch""#);
                of_texts && line.starts_with(name) && line.contains(bound)
            });
            let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
            value.with_context(|| format!("the server tells no {name} {bound}:\n{metrics}"))
        };
        const NAME: &str = "millrace_request_duration_seconds";
        Ok(Self {
            all: value(&format!("{NAME}_count"), "")?,
            soon: value(&format!("{NAME}_bucket"), r#"le="0.002""#)?,
        })
    }

    /// The share of requests since `earlier` that were answered in 2 ms.
    pub fn soon_since(self, earlier: Self) -> f64 {
        (self.soon - earlier.soon) / (self.all - earlier.all)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_were_answered_soon_is_read_and_reckoned_from_what_was_before() {
        let metrics = |soon: u32, all: u32| {
            format!(
                "millrace_request_duration_seconds_bucket{{endpoint=\"/ready\",le=\"0.002\"}} 9\n\
                 millrace_request_duration_seconds_bucket{{endpoint=\"/{{model}}/batch\",le=\"0.001\"}} 1\n\
                 millrace_request_duration_seconds_bucket{{endpoint=\"/{{model}}/batch\",le=\"0.002\"}} {soon}\n\
                 millrace_request_duration_seconds_count{{endpoint=\"/{{model}}/batch\"}} {all}\n"
            )
        };
        let before = Answered::read(&metrics(5, 10)).unwrap();
        let after = Answered::read(&metrics(80, 110)).unwrap();
        assert_eq!(after.soon_since(before), 0.75);
        assert!(Answered::read("").is_err());
    }
}
