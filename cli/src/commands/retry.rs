//! `millrace retry`: runs what failed of a finished job again, in a cluster or on this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::{ArgGroup, Args};
use millrace_protocol::manifest::Manifest;
use millrace_protocol::plan::RunNumber;
use millrace_worker::finish;
use millrace_worker::manifests;
use millrace_worker::store::{LinkLocal, Stores};

use super::run::{LocalArgs, work_off};
use crate::cluster::change::Wish;
use crate::cluster::connect::ClusterArgs;
use crate::cluster::fulfil::{JobArgs, fulfil};
use crate::cluster::jobs::job_name;
use crate::exit;
use crate::invocation::Invocation;

/// Runs the failed rows and shards of a finished job again.
///
/// What is done is never computed again. A job of a cluster is named; one that `run` finished on this
/// machine is given by its file.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("job").required(true))]
pub struct RetryArgs {
    /// The job: its name, batchjob/NAME, or @latest, the newest one.
    #[arg(value_parser = job_name, group = "job")]
    name: Option<String>,
    /// File or folder with the BatchJob and its InferenceService, for a run on this machine.
    #[arg(short = 'f', long, value_name = "PATH", group = "job")]
    file: Option<PathBuf>,
    /// Run only what failed. Required: nothing else of a job can be run again.
    #[arg(long)]
    failed_only: bool,
    #[command(flatten, next_help_heading = "On this machine")]
    local: LocalArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Both ways to call the command, for a program of this name.
pub fn usage(program: &str) -> String {
    let way = |job: &str| format!("{program} retry {job} --failed-only [OPTIONS]");
    // As far as `Usage: ` goes.
    format!("{}\n       {}", way("<NAME>"), way("-f <PATH>"))
}

/// Runs the command.
pub async fn run(args: RetryArgs) -> anyhow::Result<ExitCode> {
    let RetryArgs {
        name,
        file,
        failed_only,
        local,
        cluster,
    } = args;
    if !failed_only {
        eprintln!(
            "error: add --failed-only: rows with a result are never computed again; to run everything \
             again, create a job with another output"
        );
        return Ok(exit::BAD_MANIFEST.into());
    }
    match (name, file) {
        (Some(name), _) => fulfil(Wish::RetryFailed, JobArgs { name, cluster }).await,
        (None, Some(file)) => here(&file, local).await,
        (None, None) => unreachable!("clap wants one of them"),
    }
}

/// Runs what failed again on this machine, in the run after the one that the output holds.
async fn here(file: &Path, local: LocalArgs) -> anyhow::Result<ExitCode> {
    let mut loaded = match manifests::load(file) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(exit::bad_manifest(&error)),
    };
    let output = Stores::from_env(LinkLocal::Allowed).open(&loaded.job.output.uri)?;
    let next = match finish::read_manifest(&output).await? {
        Some(manifest) => next_run(&loaded.job.name, &manifest),
        None => Err(format!(
            "{} is not finished in {}: `{}` goes on with it",
            loaded.job.name,
            loaded.job.output.uri,
            Invocation::new().command(&format!("run -f {}", file.display()))
        )),
    };
    match next {
        Ok(next) => loaded.job = loaded.job.at_run(next.max(loaded.job.run)),
        Err(why) => bail!(why),
    }
    let again = format!("retry -f {} --failed-only", file.display());
    work_off(loaded, local, &again).await
}

/// The run after that of `manifest`, if anything failed there.
fn next_run(job: &str, manifest: &Manifest) -> Result<RunNumber, String> {
    if manifest.totals.rows.failed == 0 && manifest.failed_shards.is_empty() {
        return Err(format!(
            "{job}: no row and no shard failed, so there is nothing to run again"
        ));
    }
    Ok(manifest.run + 1)
}
