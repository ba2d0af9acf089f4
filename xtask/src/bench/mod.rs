//! `cargo xtask bench`: everything that is compared is measured in one run, in turns, because the
//! same machine differs by a fifth from one hour to the next. What counts are the ratios.

mod cluster;
mod job;
mod models;
mod online;
mod scale;
mod table;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::corpus::{self, Text};
use crate::needs::{self, Task};
use crate::process::{heading, run};
use crate::setup;
use crate::tasks::{BUILD, cargo, environment, programs};

/// What the measurements share.
pub struct Bench {
    /// What the programs find in their environment.
    pub environment: Vec<(&'static str, OsString)>,
    /// The built programs.
    pub programs: PathBuf,
    /// A folder for corpora, manifests and outputs.
    pub folder: PathBuf,
    /// The Python that has sentence-transformers, where it is measured.
    pub python: PathBuf,
    /// The folder of the model.
    pub model: PathBuf,
    /// The S3 server, where a cluster is measured.
    pub gateway: PathBuf,
    /// The load generator that waits for answers, where online requests are measured.
    pub hey: PathBuf,
    /// The one that does not.
    pub vegeta: PathBuf,
    /// The trained classifiers of the examples, where these are measured.
    pub classifiers: PathBuf,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The engine and whole jobs beside other people's.
    Models,
    /// What must not grow with the data.
    Scale,
    /// How much of an API's limits is used.
    Limits,
    /// Several steps for each row, into a table.
    Table,
    /// Requests over HTTP.
    Online,
    /// A job in a cluster beside a local one.
    Cluster,
}

/// All parts, by the names that choose them.
const PARTS: [(&str, Part); 6] = [
    ("models", Part::Models),
    ("scale", Part::Scale),
    ("limits", Part::Limits),
    ("table", Part::Table),
    ("online", Part::Online),
    ("cluster", Part::Cluster),
];

/// What a user chose.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    parts: Vec<Part>,
    force_bf16: bool,
    /// How long each load of online requests lasts.
    seconds: u64,
}

/// A load is measured so long that its start weighs little.
const SECONDS: u64 = 20;

/// Runs the benchmark: all of it, or only the parts that are named.
pub fn run_bench(arguments: &[&str]) -> Result<()> {
    let choice = choice(arguments)?;
    for task in choice.parts.iter().flat_map(Part::needs) {
        needs::check(*task)?;
    }
    let bench = Bench::prepare(&choice.parts)?;
    heading("building");
    run(&mut cargo(&bench.environment, BUILD))?;
    let examples = [
        "--example=engine",
        "--example=limits",
        "--example=with_postgres",
    ];
    run(&mut cargo(&bench.environment, &[BUILD, &examples].concat()))?;
    std::fs::create_dir_all(&bench.folder)?;
    for part in choice.parts {
        match part {
            Part::Models => models::measure(&bench, choice.force_bf16)?,
            Part::Scale => scale::measure(&bench)?,
            Part::Limits => limits(&bench)?,
            Part::Table => table::measure(&bench)?,
            Part::Online => online::measure(&bench, choice.seconds)?,
            Part::Cluster => cluster::measure(&bench)?,
        }
    }
    Ok(())
}

impl Bench {
    /// Fetches or makes what these parts need, before anything is built.
    fn prepare(parts: &[Part]) -> Result<Self> {
        let cache = &Cache::open()?;
        let environment = environment(&setup::for_running(cache)?)?;
        if parts.contains(&Part::Cluster) {
            setup::versitygw(cache)?;
        }
        if parts.contains(&Part::Online) {
            setup::load_generators(cache)?;
        }
        let needs_python = |part: &Part| matches!(part, Part::Models | Part::Online | Part::Table);
        let python = match parts.iter().any(needs_python) {
            true => setup::peers(cache)?,
            false => PathBuf::new(),
        };
        let asks_classifiers = |part: &Part| matches!(part, Part::Online | Part::Table);
        let classifiers = match parts.iter().any(asks_classifiers) {
            true => setup::classifiers(cache)?,
            false => PathBuf::new(),
        };
        Ok(Self {
            programs: programs(&environment)?,
            environment,
            folder: cache.path("bench"),
            python,
            model: cache.path(setup::MODEL),
            gateway: cache.path(setup::VERSITYGW),
            hey: cache.path(setup::HEY),
            vegeta: cache.path(setup::VEGETA),
            classifiers,
        })
    }
}

impl Part {
    /// What it needs on this machine.
    fn needs(&self) -> &'static [Task] {
        match self {
            Part::Models | Part::Scale | Part::Online => &[Task::Bench],
            Part::Limits | Part::Table => &[Task::Bench, Task::Test],
            Part::Cluster => &[Task::Bench, Task::Cluster],
        }
    }
}

fn choice(arguments: &[&str]) -> Result<Choice> {
    let mut choice = Choice {
        parts: Vec::new(),
        force_bf16: false,
        seconds: SECONDS,
    };
    for argument in arguments {
        let named = PARTS.iter().find(|(name, _)| name == argument);
        match named {
            Some((_, part)) => choice.parts.push(*part),
            None if *argument == "--bf16" => choice.force_bf16 = true,
            None if argument.starts_with("--seconds=") => {
                choice.seconds = seconds(argument).with_context(|| {
                    format!("{argument:?} is no whole number of seconds, at least 1")
                })?;
            }
            None => {
                let names = PARTS.map(|(name, _)| format!("[{name}]")).join(" ");
                bail!(
                    "{argument:?} is unknown; usage: cargo xtask bench {names} [--bf16] [--seconds=N]"
                )
            }
        }
    }
    if choice.parts.is_empty() {
        choice.parts = PARTS.map(|(_, part)| part).to_vec();
        if !needs::can_make_clusters() {
            choice.parts.retain(|part| *part != Part::Cluster);
        }
    }
    Ok(choice)
}

/// The number of `--seconds=20`.
fn seconds(argument: &str) -> Option<u64> {
    let (_, number) = argument.split_once('=')?;
    number.parse().ok().filter(|seconds| *seconds > 0)
}

/// Jobs against the stand-in of an API, which are measured by a program of their own.
fn limits(bench: &Bench) -> Result<()> {
    heading("jobs that ask an API with limits");
    let mut command = Command::new(bench.programs.join("examples/limits"));
    run(command.env("MILLRACE_BIN_DIR", &bench.programs))
}

/// A corpus in a file.
pub struct Corpus {
    /// What it is called in the report.
    pub name: &'static str,
    /// JSON lines.
    pub file: PathBuf,
    /// Texts in it.
    pub texts: usize,
}

impl Corpus {
    /// Writes a corpus into `folder`.
    pub fn write(name: &'static str, texts: &[Text], folder: &Path) -> Result<Self> {
        let file = folder.join(format!("{name}.jsonl"));
        corpus::write(texts, &file)?;
        Ok(Self {
            name,
            file,
            texts: texts.len(),
        })
    }
}

/// Whether the server at the other end of a connection says that it is ready.
fn is_ready(stream: std::io::Result<impl Read + Write>) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = stream?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The middle one of some measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_choice_everything_is_measured() {
        let all = choice(&["--bf16"]).unwrap();
        assert!(all.force_bf16 && all.parts.starts_with(&[Part::Models, Part::Scale]));
        let has_cluster = all.parts.contains(&Part::Cluster);
        assert_eq!(has_cluster, needs::can_make_clusters());
        let some = choice(&["scale", "limits"]).unwrap();
        assert_eq!(some.parts, [Part::Scale, Part::Limits]);
        assert!(!some.force_bf16 && some.seconds == SECONDS);
        assert_eq!(choice(&["online", "--seconds=2"]).unwrap().seconds, 2);
        for wrong in ["fast", "--seconds=0", "--seconds=soon"] {
            assert!(choice(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
