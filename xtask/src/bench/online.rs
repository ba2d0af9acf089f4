//! Online requests over loopback, by somebody else's load generator: single texts that the server knows
//! already, and the same where nothing is kept.
//!
//! The models are those of the examples, made at the size named: what they cost is what a trained
//! model of that size costs.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Bench, is_ready};
use crate::process::{heading, output, repository, run};

/// Sizes of models: name, layers, hidden size.
const SIZES: [(&str, &str, &str); 2] = [("MiniLM", "6", "384"), ("BERT-base", "12", "768")];
/// Clients that ask at the same time.
const CLIENTS: &str = "32";
/// How long each is measured.
const SECONDS: u64 = 20;
/// How long a server may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// One text of some twenty words.
const BODY: &str = r#"{"texts": ["The parcel came two days late and the box was open, but the lamp inside is wonderful and works as it should."]}"#;

/// Measures and prints.
pub fn measure(bench: &Bench) -> Result<()> {
    for (name, layers, hidden) in SIZES {
        heading(&format!(
            "single texts online, a classifier of {name}'s size, {CLIENTS} clients"
        ));
        let folder = bench.folder.join(format!("online-{name}"));
        let mut make = Command::new("python3");
        make.arg(repository().join("examples/make_models.py"))
            .args(["--layers", layers, "--hidden", hidden, "--to"])
            .arg(&folder)
            .stdout(Stdio::null());
        run(&mut make)?;
        let cached = ask(bench, &folder, true)?;
        let uncached = ask(bench, &folder, false)?;
        for (what, load) in [("cached", &cached), ("uncached", &uncached)] {
            println!(
                "    {what:<9} {:>7.0} requests/s, p50 {:.1} ms, p99 {:.1} ms",
                load.per_second, load.p50_ms, load.p99_ms
            );
        }
        println!(
            "    a known answer costs 1/{:.1} of a computed one",
            cached.per_second / uncached.per_second
        );
    }
    Ok(())
}

/// What the load generator saw.
#[derive(Debug, PartialEq)]
struct Load {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn ask(bench: &Bench, folder: &Path, cached: bool) -> Result<Load> {
    let service = folder.join("service.yaml");
    let manifest = format!(
        "apiVersion: millrace.dev/v1alpha1\nkind: InferenceService\nmetadata: {{name: online}}\nspec:\n  \
         cache: {{enabled: {cached}}}\n  models:\n  - name: sentiment\n    task: SequenceClassification\n    \
         source: {{uri: analysis/models/sentiment}}\n"
    );
    fs::write(&service, manifest)?;
    let server = Server::start(bench, &service)?;
    let url = format!("http://{}/sentiment/batch", server.address);
    let load = |seconds: u64| {
        let mut command = Command::new(&bench.hey);
        command
            .args(["-z", &format!("{seconds}s"), "-c", CLIENTS])
            .args(["-m", "POST", "-T", "application/json", "-d", BODY, &url]);
        output(&mut command)
    };
    // The first seconds warm threads, allocators and connections, and may have too few answers for a
    // percentile.
    load(3)?;
    read(&load(SECONDS)?)
}

/// Reads what the load generator prints.
fn read(report: &str) -> Result<Load> {
    let after = |label: &str| {
        let line = report
            .lines()
            .find_map(|line| line.trim().strip_prefix(label));
        let word = line.and_then(|rest| rest.split_whitespace().next());
        let number = word.and_then(|word| word.parse::<f64>().ok());
        number.with_context(|| format!("the load generator said no {label:?}:\n{report}"))
    };
    let codes = report.split("Status code distribution:").nth(1);
    let codes = codes.context("no request was answered")?;
    let others = codes.lines().map(str::trim).any(|line| {
        line.starts_with('[') && !line.starts_with("[200]") || line.starts_with("Error")
    });
    ensure!(!others, "not all requests succeeded:{codes}");
    Ok(Load {
        per_second: after("Requests/sec:")?,
        p50_ms: after("50% in")? * 1e3,
        p99_ms: after("99% in")? * 1e3,
    })
}

/// A running server; killed when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(bench: &Bench, service: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        drop(listener);
        let program: PathBuf = bench.programs.join("millrace-inference-server");
        let child = Command::new(program)
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

    const REPORT: &str = "
Summary:
  Total:\t20.0012 secs
  Requests/sec:\t5012.5000

Latency distribution:
  50% in 0.0021 secs
  99% in 0.0048 secs

Status code distribution:
  [200]\t100250 responses
";

    #[test]
    fn the_report_is_read_and_failed_requests_are_no_measurement() {
        let load = read(REPORT).unwrap();
        assert_eq!(load.per_second, 5012.5);
        assert!((load.p50_ms - 2.1).abs() < 1e-9 && (load.p99_ms - 4.8).abs() < 1e-9);
        let refused = REPORT.replace("responses\n", "responses\n  [429]\t3 responses\n");
        assert!(read(&refused).is_err());
    }
}
