//! `cargo xtask bench`: everything that is compared is measured in one run, in turns, because the
//! same machine differs by a fifth from one hour to the next. What counts are the ratios.

mod cluster;
mod job;
mod models;
mod online;
mod scale;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

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
    /// The Python that has sentence-transformers.
    pub python: PathBuf,
    /// The folder of the model.
    pub model: PathBuf,
    /// The S3 server, where a cluster is measured.
    pub gateway: PathBuf,
    /// The load generator, where online requests are measured.
    pub hey: PathBuf,
}

/// What a user chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    models: bool,
    scale: bool,
    online: bool,
    cluster: bool,
    force_bf16: bool,
}

/// Runs the benchmark: all of it, or only the parts that are named.
pub fn run_bench(arguments: &[&str]) -> Result<()> {
    let choice = choice(arguments)?;
    needs::check(Task::Bench)?;
    let (libtorch, python, folder, model, gateway, hey) = {
        let cache = Cache::open()?;
        if choice.cluster {
            setup::versitygw(&cache)?;
        }
        if choice.online {
            setup::hey(&cache)?;
        }
        let libtorch = setup::for_running(&cache)?;
        (
            libtorch,
            setup::peers(&cache)?,
            cache.path("bench"),
            cache.path(setup::MODEL),
            cache.path(setup::VERSITYGW),
            cache.path(setup::HEY),
        )
    };
    let environment = environment(&libtorch)?;
    heading("building");
    run(&mut cargo(&environment, BUILD))?;
    let engine = [BUILD, &["--example=engine"]].concat();
    run(&mut cargo(&environment, &engine))?;
    std::fs::create_dir_all(&folder)?;
    let programs = programs(&environment)?;
    let bench = Bench {
        environment,
        programs,
        folder,
        python,
        model,
        gateway,
        hey,
    };
    if choice.models {
        models::measure(&bench, choice.force_bf16)?;
    }
    if choice.scale {
        scale::measure(&bench)?;
    }
    if choice.online {
        online::measure(&bench)?;
    }
    if choice.cluster {
        cluster::measure(&bench)?;
    }
    Ok(())
}

fn choice(arguments: &[&str]) -> Result<Choice> {
    let mut choice = Choice {
        models: false,
        scale: false,
        online: false,
        cluster: false,
        force_bf16: false,
    };
    for argument in arguments {
        match *argument {
            "models" => choice.models = true,
            "scale" => choice.scale = true,
            "online" => choice.online = true,
            "cluster" => choice.cluster = true,
            "--bf16" => choice.force_bf16 = true,
            other => {
                bail!(
                    "{other:?} is unknown; usage: cargo xtask bench [models] [scale] [online] [cluster] [--bf16]"
                )
            }
        }
    }
    if !choice.models && !choice.scale && !choice.online && !choice.cluster {
        choice = Choice {
            models: true,
            scale: true,
            online: true,
            cluster: needs::can_make_clusters(),
            ..choice
        };
    }
    Ok(choice)
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
        let all = Choice {
            models: true,
            scale: true,
            online: true,
            cluster: needs::can_make_clusters(),
            force_bf16: true,
        };
        assert_eq!(choice(&["--bf16"]).unwrap(), all);
        assert_eq!(
            choice(&["scale"]).unwrap(),
            Choice {
                models: false,
                scale: true,
                online: false,
                cluster: false,
                force_bf16: false
            }
        );
        assert!(choice(&["fast"]).is_err());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
