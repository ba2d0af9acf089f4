//! `millrace retry`: runs what failed of a finished job again.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::change::Wish;
use crate::cluster::fulfil::{JobArgs, fulfil};
use crate::exit;

/// Runs the failed rows and shards of a finished job again.
///
/// What is done is never computed again.
#[derive(Debug, Args)]
pub struct RetryArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Run only what failed. Required: nothing else of a job can be run again.
    #[arg(long)]
    failed_only: bool,
}

/// Runs the command.
pub async fn run(args: RetryArgs) -> anyhow::Result<ExitCode> {
    let RetryArgs { job, failed_only } = args;
    if !failed_only {
        eprintln!(
            "error: add --failed-only: rows with a result are never computed again; to run everything \
             again, create a job with another output"
        );
        return Ok(exit::BAD_MANIFEST.into());
    }
    fulfil(Wish::RetryFailed, job).await
}
