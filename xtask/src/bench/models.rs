//! Engine, whole job and sentence-transformers over the same texts.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::job::Job;
use super::{Bench, Corpus, median};
use crate::corpus;
use crate::process::{heading, output};

/// How often each is measured; the median counts.
const ROUNDS: usize = 3;
/// A job is made long enough that its two ends weigh little, as those of a real one do.
const JOB_SECONDS: f64 = 30.0;

/// One measurement.
#[derive(Debug, Clone, Deserialize)]
struct Measured {
    texts: u64,
    #[serde(default)]
    tokens: u64,
    seconds: f64,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.texts as f64 / self.seconds
    }
}

/// The end of a job as `millrace run -o json` prints it, last line.
#[derive(Deserialize)]
struct Finished {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    rows: Rows,
}

#[derive(Deserialize)]
struct Rows {
    succeeded: u64,
}

/// Measures and prints the comparison.
pub fn measure(bench: &Bench, force_bf16: bool) -> Result<()> {
    let mut corpora = vec![Corpus::write("short", &corpus::short()?, &bench.folder)?];
    let long = corpus::long()?;
    if long.is_empty() {
        println!("no long corpus: this machine has too few manual pages and documents");
    } else {
        corpora.push(Corpus::write("long", &long, &bench.folder)?);
    }
    let mut dtypes = vec!["Float32"];
    if force_bf16 || has_bf16_units() {
        dtypes.push("BFloat16");
    } else {
        println!("no BFloat16: this CPU has neither AMX nor AVX512-BF16 (--bf16 measures anyway)");
    }
    for corpus in &corpora {
        of_corpus(bench, corpus, &dtypes)?;
    }
    Ok(())
}

fn has_bf16_units() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu.split_whitespace()
        .any(|flag| flag == "amx_bf16" || flag == "avx512_bf16")
}

/// All rounds of one dtype over one corpus.
struct Contender {
    dtype: &'static str,
    job: Job,
    copies: usize,
    engine: Vec<Measured>,
    /// Rates of whole jobs, the start of the server left out.
    job_rates: Vec<f64>,
    starts: Vec<f64>,
    /// Most memory of the worker's own process, MiB.
    peak_mib: u64,
}

fn of_corpus(bench: &Bench, corpus: &Corpus, dtypes: &[&'static str]) -> Result<()> {
    heading(&format!(
        "{}: {} texts, in turns, {ROUNDS} rounds",
        corpus.name, corpus.texts
    ));
    let mut contenders = Vec::new();
    for dtype in dtypes {
        contenders.push(Contender::prepare(bench, corpus, dtype)?);
    }
    let mut peer = Vec::new();
    for round in 1..=ROUNDS {
        println!("    round {round}");
        peer.push(of_peer(bench, corpus)?.rate());
        for contender in &mut contenders {
            contender.round(bench, corpus)?;
        }
    }
    print!("{}", report(corpus, median(peer), &contenders));
    for contender in contenders {
        fs::remove_dir_all(contender.job.folder)?;
    }
    Ok(())
}

impl Contender {
    fn prepare(bench: &Bench, corpus: &Corpus, dtype: &'static str) -> Result<Self> {
        let name = format!("{}-{dtype}", corpus.name);
        let input = bench.folder.join(&name).join("input.jsonl");
        let job = Job::lay(bench, &name, dtype, &input)?;
        let first = of_engine(bench, &job, corpus, 1)?;
        let copies = (JOB_SECONDS / first.seconds).ceil().max(1.0) as usize;
        let texts = fs::read(&corpus.file)?;
        let mut file = fs::File::create(&input)?;
        for _ in 0..copies {
            file.write_all(&texts)?;
        }
        let (engine, job_rates, starts) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            dtype,
            job,
            copies,
            engine,
            job_rates,
            starts,
            peak_mib: 0,
        })
    }

    fn round(&mut self, bench: &Bench, corpus: &Corpus) -> Result<()> {
        self.engine
            .push(of_engine(bench, &self.job, corpus, self.copies)?);
        let start = self.job.server_start_seconds(bench)?;
        let results = self.job.folder.join("output");
        if results.exists() {
            fs::remove_dir_all(&results)?;
        }
        let ended = self.job.run(bench, &[], &[])?;
        let last = ended
            .stdout
            .lines()
            .last()
            .context("the job printed nothing")?;
        let rows = serde_json::from_str::<Finished>(last)?
            .status
            .rows
            .succeeded;
        let expected = (corpus.texts * self.copies) as u64;
        ensure!(
            rows == expected,
            "the job has {rows} results for {expected} texts"
        );
        self.job_rates.push(rows as f64 / (ended.seconds - start));
        self.starts.push(start);
        self.peak_mib = self.peak_mib.max(ended.peak_mib);
        Ok(())
    }
}

fn of_engine(bench: &Bench, job: &Job, corpus: &Corpus, copies: usize) -> Result<Measured> {
    let mut engine = Command::new(bench.programs.join("examples/engine"));
    engine
        .arg(job.folder.join("service.yaml"))
        .arg(&corpus.file)
        .arg(copies.to_string());
    engine.envs(bench.environment.iter().map(|(name, value)| (name, value)));
    Ok(serde_json::from_str(&output(&mut engine)?)?)
}

fn of_peer(bench: &Bench, corpus: &Corpus) -> Result<Measured> {
    let script: PathBuf = bench.folder.join("peer.py");
    fs::write(&script, include_str!("peer.py"))?;
    let threads = std::thread::available_parallelism()?.to_string();
    let mut peer = Command::new(&bench.python);
    peer.arg(script)
        .arg(&bench.model)
        .arg(&corpus.file)
        .arg(threads)
        .env("HF_HUB_OFFLINE", "1");
    // The libraries of its own wheel, not ours.
    peer.env_remove("LD_LIBRARY_PATH");
    Ok(serde_json::from_str(&output(&mut peer)?)?)
}

fn report(corpus: &Corpus, peer: f64, contenders: &[Contender]) -> String {
    let mut lines = vec![
        format!(
            "\n{:<34} {:>9} {:>10} {:>9} {:>9}",
            corpus.name, "texts/s", "tokens/s", "÷ peer", "÷ engine"
        ),
        format!(
            "{:<34} {peer:>9.0} {:>10} {:>9.2} {:>9}",
            "sentence-transformers Float32", "", 1.0, ""
        ),
    ];
    for Contender {
        dtype,
        engine,
        job_rates,
        starts,
        peak_mib,
        copies,
        ..
    } in contenders
    {
        let rate = median(engine.iter().map(Measured::rate).collect());
        let per_text = engine[0].tokens as f64 / engine[0].texts as f64;
        let row = |name: String, rate: f64, share: String| {
            let (tokens, ratio) = (rate * per_text, rate / peer);
            format!("{name:<34} {rate:>9.0} {tokens:>10.0} {ratio:>9.2} {share:>9}")
        };
        lines.push(row(format!("engine {dtype}"), rate, String::new()));
        let of_job = median(job_rates.clone());
        lines.push(row(
            format!("whole job {dtype}"),
            of_job,
            format!("{:.3}", of_job / rate),
        ));
        lines.push(format!(
            "    {copies} copies; the server's start, left out: {:.2} s; peak of the worker's \
             process: {peak_mib} MiB",
            median(starts.clone())
        ));
    }
    lines.join("\n") + "\n"
}
