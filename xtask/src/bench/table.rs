//! Three steps for each row, and all of them into a table of a real Postgres.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Bench, Corpus, median};
use crate::corpus;
use crate::process::{heading, output, repository};
use crate::setup::{self, MINILM};

/// The example that is measured.
const EXAMPLE: &str = "examples/sentiment-to-postgres";
/// Times that each job is run.
const TURNS: usize = 3;
/// Texts a second of a loop that asked three APIs about one text after the other and inserted it.
const ONE_CALL_A_TEXT: f64 = 0.44;

/// Measures and prints.
pub fn measure(bench: &Bench) -> Result<()> {
    heading("sentiment, emotion and embedding of each text, into a table");
    let corpus = Corpus::write("table-texts", &corpus::short()?, &bench.folder)?;
    let files = lay(bench, &corpus, false)?;
    let table = lay(bench, &corpus, true)?;
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        seconds[0].push(into_files(bench, &files)?);
        seconds[1].push(into_table(bench, &table, corpus.texts)?);
    }
    let [files, table] = seconds.map(|seconds| corpus.texts as f64 / median(seconds));
    println!("    {} texts, the server's start included", corpus.texts);
    println!("    into files          {files:>7.1} texts/s");
    println!(
        "    into a table too    {table:>7.1} texts/s: {:.2} of files alone, {:.0} times one call a text",
        table / files,
        table / ONE_CALL_A_TEXT
    );
    Ok(())
}

/// Lays the example out over the corpus, with its models, and with or without its table.
fn lay(bench: &Bench, corpus: &Corpus, with_table: bool) -> Result<PathBuf> {
    let folder = bench
        .folder
        .join(if with_table { "table" } else { "no-table" });
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let names = ["sentiment", "emotion"];
    setup::grow(&bench.python, &bench.classifiers, MINILM, &names, &folder)?;
    let place = folder.join("sentiment-to-postgres");
    fs::create_dir_all(&place)?;
    let from = repository().join(EXAMPLE);
    fs::copy(from.join("service.yaml"), place.join("service.yaml"))?;
    let manifest = fs::read_to_string(from.join("job.yaml"))?;
    let (before, table) = manifest
        .split_once("    postgres:")
        .context("the example has no table")?;
    let manifest = match with_table {
        true => format!("{before}    postgres:{table}"),
        false => before.to_owned(),
    };
    let input = corpus.file.display().to_string();
    fs::write(
        place.join("job.yaml"),
        manifest.replace("texts.jsonl", &input),
    )?;
    Ok(place)
}

/// Seconds of a run without a table.
fn into_files(bench: &Bench, folder: &Path) -> Result<f64> {
    let started = Instant::now();
    let mut command = Command::new(bench.programs.join("millrace"));
    run_anew(&mut command, bench, folder)?;
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds of a run with a table, which must hold every text after it.
fn into_table(bench: &Bench, folder: &Path, texts: usize) -> Result<f64> {
    let mut command = Command::new(bench.programs.join("examples/with_postgres"));
    command.arg("texts").arg(bench.programs.join("millrace"));
    let printed = run_anew(&mut command, bench, folder)?;
    let last = printed.lines().last().and_then(|line| line.split_once(' '));
    let (seconds, rows) = last.context("the job's end was not told")?;
    ensure!(
        rows.parse() == Ok(texts),
        "{rows} of {texts} rows in the table"
    );
    Ok(seconds.parse()?)
}

/// Runs `millrace run`, or a command around it, without an earlier output. Returns what it printed.
fn run_anew(command: &mut Command, bench: &Bench, folder: &Path) -> Result<String> {
    let earlier = folder.join("output");
    if earlier.exists() {
        fs::remove_dir_all(earlier)?;
    }
    command.args(["run", "-f"]).arg(folder);
    command.envs(bench.environment.iter().map(|(name, value)| (name, value)));
    output(command)
}
