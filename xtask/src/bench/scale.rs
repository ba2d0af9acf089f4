//! What must not grow with the data: the time to cut it, and the memory of everything but models.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Bench;
use super::job::Job;
use crate::corpus;
use crate::process::heading;

/// Size of the large input.
const LARGE_BYTES: u64 = 5_000_000_000;
/// Rows of the jobs whose memory is compared. Only from the second on are two shards in hand.
const ROWS: [usize; 3] = [10_000, 100_000, 1_000_000];

/// What `millrace run --dry-run -o json` prints, in part.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DryRun {
    shards: u64,
    plan_seconds: f64,
    preflight_seconds: f64,
    preflight: Preflight,
}

#[derive(Deserialize)]
struct Preflight {
    rows: u64,
}

/// Measures and prints.
pub fn measure(bench: &Bench) -> Result<()> {
    large_input(bench)?;
    many_rows(bench)
}

fn large_input(bench: &Bench) -> Result<()> {
    heading(&format!("{:.0} GB of JSON lines", LARGE_BYTES as f64 / 1e9));
    let input = bench.folder.join("large.jsonl");
    let long = corpus::long()?;
    let texts = if long.is_empty() {
        corpus::short()?
    } else {
        long
    };
    let lines: Vec<String> = texts
        .iter()
        .map(serde_json::to_string)
        .collect::<std::result::Result<_, _>>()?;
    write_until(&lines, &input, |bytes, _| bytes >= LARGE_BYTES)?;
    let job = Job::lay(bench, "large", "Float32", &input)?;
    let ended = job.run(bench, &["--dry-run"], &[])?;
    fs::remove_file(&input)?;
    let last = ended
        .stdout
        .lines()
        .last()
        .context("the dry run printed nothing")?;
    let found: DryRun = serde_json::from_str(last)?;
    println!(
        "    cut into {} shards in {:.3} s",
        found.shards, found.plan_seconds
    );
    println!(
        "    preflight of {} rows in {:.1} s, {:.0} MB/s; peak memory {} MiB",
        found.preflight.rows,
        found.preflight_seconds,
        LARGE_BYTES as f64 / 1e6 / found.preflight_seconds,
        ended.peak_mib
    );
    Ok(())
}

fn many_rows(bench: &Bench) -> Result<()> {
    heading(
        "memory of the worker's process, with the model replaced by the deterministic stand-in",
    );
    let lines: Vec<String> = corpus::short()?
        .iter()
        .map(serde_json::to_string)
        .collect::<std::result::Result<_, _>>()?;
    let (mut peaks, mut peaks_again) = (Vec::new(), Vec::new());
    for rows in ROWS {
        let input = bench.folder.join("rows.jsonl");
        write_until(&lines, &input, |_, written| written >= rows)?;
        let job = Job::lay(bench, "rows", "Float32", &input)?;
        let run = || job.run(bench, &[], &[("MILLRACE_FAKE_BACKEND", "hidden-size=384")]);
        let first = run()?;
        job.go_on_from_its_output()?;
        let again = run()?;
        println!(
            "    {rows:>9} rows: peak {} MiB, {:.0} rows/s with start; carried over by a second job: \
             {} MiB, {:.0} rows/s",
            first.peak_mib,
            rows as f64 / first.seconds,
            again.peak_mib,
            rows as f64 / again.seconds
        );
        peaks.push(first.peak_mib as f64);
        peaks_again.push(again.peak_mib as f64);
        fs::remove_file(&input)?;
        fs::remove_dir_all(&job.folder)?;
    }
    for (what, peaks) in [("computed", peaks), ("carried over", peaks_again)] {
        println!(
            "    {what}: ratio of the last to the first {:.2}, to the second {:.2}",
            peaks[2] / peaks[0],
            peaks[2] / peaks[1]
        );
    }
    Ok(())
}

/// Writes the lines over and over until `done(bytes, lines)`.
fn write_until(lines: &[String], file: &Path, done: impl Fn(u64, usize) -> bool) -> Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(file)?);
    let mut bytes = 0;
    for (written, line) in lines.iter().cycle().enumerate() {
        if done(bytes, written) {
            break;
        }
        writer.write_all(line.as_bytes())?;
        writer.write_all(b"\n")?;
        bytes += line.len() as u64 + 1;
    }
    writer
        .flush()
        .with_context(|| format!("{} cannot be written", file.display()))
}
