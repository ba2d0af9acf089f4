//! Load generators of others, and what they saw. A closed loop asks as fast as it is answered, which says
//! how much a server can do; a rate that waits for no answer says how long one takes.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::bench::Bench;
use crate::process::output;

/// Requests a second where they do not wait for answers.
pub const RATE: u64 = 1_000;
/// Most requests that may be under way then; as many as the server takes at a time.
const UNDER_WAY_MAX: &str = "512";
/// The least of a rate that must have been sent for it to be one.
const RATE_SHARE: f64 = 0.98;
/// Seconds that warm threads, allocators and connections.
const WARM_UP_SECONDS: u64 = 3;

/// What a load generator saw.
#[derive(Debug, PartialEq)]
pub struct Load {
    /// Answers a second.
    pub per_second: f64,
    /// The middle latency.
    p50_ms: f64,
    /// Nothing where there were too few answers.
    p99_ms: Option<f64>,
}

impl fmt::Display for Load {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            per_second,
            p50_ms,
            p99_ms,
        } = self;
        write!(
            formatter,
            "{per_second:>7.1} requests/s, p50 {p50_ms:.1} ms"
        )?;
        match p99_ms {
            Some(p99_ms) => write!(formatter, ", p99 {p99_ms:.1} ms"),
            None => Ok(()),
        }
    }
}

/// So many clients, each of which asks again as soon as it is answered.
pub fn closed(bench: &Bench, url: &str, body: &Path, clients: usize, seconds: u64) -> Result<Load> {
    let load = |seconds: u64| {
        let mut command = Command::new(&bench.hey);
        command
            .args(["-z", &format!("{seconds}s"), "-c", &clients.to_string()])
            .args(["-m", "POST", "-T", "application/json", "-D"])
            .args([body.as_os_str(), url.as_ref()]);
        output(&mut command)
    };
    load(WARM_UP_SECONDS)?;
    read_closed(&load(seconds)?)
}

/// [`RATE`] requests a second, each sent at its time whether or not earlier ones are answered, and
/// measured from then.
pub fn open(bench: &Bench, url: &str, body: &Path, seconds: u64) -> Result<Load> {
    let targets = body.with_extension("targets");
    let results = body.with_extension("results");
    fs::write(&targets, format!("POST {url}\n"))?;
    let attack = |seconds: u64| {
        let mut command = Command::new(&bench.vegeta);
        command
            .arg("attack")
            .args(["-rate", &RATE.to_string(), "-duration"])
            .arg(format!("{seconds}s"))
            .args(["-max-workers", UNDER_WAY_MAX, "-max-body", "0"])
            .args(["-header", "Content-Type: application/json"])
            .args(["-body".as_ref(), body.as_os_str()])
            .args(["-targets".as_ref(), targets.as_os_str()])
            .args(["-output".as_ref(), results.as_os_str()]);
        output(&mut command)
    };
    attack(WARM_UP_SECONDS)?;
    attack(seconds)?;
    let mut report = Command::new(&bench.vegeta);
    report.args(["report", "-type=json"]).arg(&results);
    let report = read_open(&output(&mut report)?);
    fs::remove_file(results)?;
    report
}

/// Reads what hey prints.
fn read_closed(report: &str) -> Result<Load> {
    let after = |label: &str| {
        let line = report
            .lines()
            .find_map(|line| line.trim().strip_prefix(label));
        let word = line.and_then(|rest| rest.split_whitespace().next());
        word.and_then(|word| word.parse::<f64>().ok())
    };
    let needed = |label: &str| {
        after(label).with_context(|| format!("the load generator said no {label:?}:\n{report}"))
    };
    let codes = report.split("Status code distribution:").nth(1);
    let codes = codes.context("no request was answered")?;
    let others = codes.lines().map(str::trim).any(|line| {
        line.starts_with('[') && !line.starts_with("[200]") || line.starts_with("Error")
    });
    ensure!(!others, "not all requests succeeded:{codes}");
    Ok(Load {
        per_second: needed("Requests/sec:")?,
        p50_ms: needed("50% in")? * 1e3,
        p99_ms: after("99% in").map(|seconds| seconds * 1e3),
    })
}

/// What vegeta reports; times are nanoseconds.
#[derive(Deserialize)]
struct Report {
    latencies: Latencies,
    /// Requests a second that were sent.
    rate: f64,
    throughput: f64,
    success: f64,
}

#[derive(Deserialize)]
struct Latencies {
    #[serde(rename = "50th")]
    p50: f64,
    #[serde(rename = "99th")]
    p99: f64,
}

fn read_open(report: &str) -> Result<Load> {
    let Report {
        latencies,
        rate,
        throughput,
        success,
    } = serde_json::from_str(report).context("the load generator's report is none")?;
    ensure!(success == 1.0, "not all requests succeeded: {report}");
    ensure!(
        rate >= RATE_SHARE * RATE as f64,
        "only {rate:.0} of {RATE} requests a second were sent"
    );
    let Latencies { p50, p99 } = latencies;
    Ok(Load {
        per_second: throughput,
        p50_ms: p50 / 1e6,
        p99_ms: Some(p99 / 1e6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: &str = "
Summary:
  Total:\t20.0012 secs
  Requests/sec:\t5012.5000

Latency distribution:
  50% in 0.0021 secs
  99% in 0.0048 secs

Status code distribution:
  [200]\t100250 responses
";

    const OPEN: &str = r#"{"latencies": {"total": 1, "mean": 1, "50th": 700000, "90th": 900000,
        "95th": 1000000, "99th": 2500000, "max": 9000000, "min": 300000}, "requests": 20000,
        "rate": 1000.05, "throughput": 999.9, "success": 1, "status_codes": {"200": 20000}}"#;

    #[test]
    fn the_report_of_a_closed_loop_is_read_and_failed_requests_are_no_measurement() {
        let load = read_closed(CLOSED).unwrap();
        assert_eq!(load.per_second, 5012.5);
        assert_eq!(
            load.to_string(),
            " 5012.5 requests/s, p50 2.1 ms, p99 4.8 ms"
        );
        let refused = CLOSED.replace("responses\n", "responses\n  [429]\t3 responses\n");
        assert!(read_closed(&refused).is_err());
    }

    #[test]
    fn a_few_answers_have_no_ninety_ninth_percentile() {
        let few = CLOSED.replace("  99% in 0.0048 secs\n", "");
        assert_eq!(read_closed(&few).unwrap().p99_ms, None);
    }

    #[test]
    fn a_rate_that_was_not_sent_or_not_answered_is_no_measurement() {
        let load = read_open(OPEN).unwrap();
        assert_eq!((load.p50_ms, load.p99_ms), (0.7, Some(2.5)));
        assert!(read_open(&OPEN.replace("\"success\": 1", "\"success\": 0.999")).is_err());
        assert!(read_open(&OPEN.replace("1000.05", "700.0")).is_err());
    }
}
