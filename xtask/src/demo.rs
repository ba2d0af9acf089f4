//! `cargo xtask demo`: from a fresh clone to embedded texts that can be searched.

mod neighbours;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::corpus;
use crate::needs::{self, Task};
use crate::process::{heading, repository, run};
use crate::setup;
use crate::tasks::{BUILD, cargo, environment, programs};

/// The manifests of the demo, which are also the first example.
const MANIFESTS: [(&str, &str); 2] = [
    (
        "service.yaml",
        include_str!("../../examples/embed/service.yaml"),
    ),
    ("job.yaml", include_str!("../../examples/embed/job.yaml")),
];

/// Name of the model in [`MANIFESTS`], and so of the job's one step.
const STEP: &str = "minilm";

/// Runs the demo. Run again, it goes on where it was, or shows what is there.
pub fn run_demo() -> Result<()> {
    needs::check(Task::Demo)?;
    println!(
        "sets up, builds, embeds some 20,000 texts of this machine with a small model, and shows which are alike"
    );
    let (libtorch, folder) = {
        let cache = Cache::open()?;
        (setup::for_running(&cache)?, prepare(&cache)?)
    };
    let environment = environment(&libtorch)?;
    heading("building millrace (ten minutes or more the first time, on two cores)");
    run(&mut cargo(&environment, BUILD))?;

    let millrace = programs(&environment)?.join("millrace");
    let finished_before = folder.join("output/manifest.json").exists();
    heading(&format!(
        "{} run -f {}",
        millrace.display(),
        folder.display()
    ));
    let started = Instant::now();
    let mut job = Command::new(&millrace);
    job.args(["run", "-f"])
        .arg(&folder)
        .envs(environment.iter().map(|(name, value)| (name, value)));
    run(&mut job)?;
    let seconds = started.elapsed().as_secs_f64();

    let output = folder.join("output");
    let rows = neighbours::read(&output, STEP)?;
    if rows.is_empty() {
        bail!("the job left no results in {}", output.display());
    }
    if finished_before {
        println!(
            "\n{} texts were embedded by an earlier run; to see one: rm -r {}",
            rows.len(),
            output.display()
        );
    } else {
        let rate = rows.len() as f64 / seconds;
        println!(
            "\n{} texts in {seconds:.1} s, start included: {rate:.0} texts/s",
            rows.len()
        );
    }
    heading("the nearest neighbours of three of them, by cosine");
    print!("{}", neighbours::shown(&rows));
    heading("results and next commands");
    print!("{}", next(&millrace, &output));
    Ok(())
}

/// Lays manifests and texts into the cache, once. Other manifests, or another layout of outputs, mean
/// another demo, without the results of the one before.
fn prepare(cache: &Cache) -> Result<PathBuf> {
    let manifests: String = MANIFESTS.iter().map(|(_, manifest)| *manifest).collect();
    let stamp = format!("layout with ledgers\n{manifests}");
    cache.folder("demo", &stamp, |making| {
        heading("gathering texts of this machine");
        let (texts, origin) = corpus::demo()?;
        println!("    {} texts: {origin}", texts.len());
        corpus::write(&texts, &making.join("texts.jsonl"))?;
        for (name, manifest) in MANIFESTS {
            std::fs::write(making.join(name), manifest)?;
        }
        Ok(())
    })
}

/// Where the results are, and three commands to go on with, as they can be pasted from here.
fn next(millrace: &Path, output: &Path) -> String {
    let millrace = millrace
        .strip_prefix(repository())
        .unwrap_or(millrace)
        .display();
    let output = output.display();
    format!(
        "results: {output}/parts, listed in {output}/manifest.json\n\n\
         look at them:        {millrace} results {output} --limit 3\n\
         your own texts:      edit examples/embed, then {millrace} run -f examples/embed\n\
         how fast it can be:  cargo xtask bench\n"
    )
}
