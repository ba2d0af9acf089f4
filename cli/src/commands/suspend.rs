//! `millrace suspend`: lets a job rest.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::change::Wish;
use crate::cluster::fulfil::{JobArgs, fulfil};

/// Lets a job rest: its workers give their shards back, and what is done stays.
///
/// A job that is suspended already stays so.
#[derive(Debug, Args)]
pub struct SuspendArgs {
    #[command(flatten)]
    job: JobArgs,
}

/// Runs the command.
pub async fn run(args: SuspendArgs) -> anyhow::Result<ExitCode> {
    let SuspendArgs { job } = args;
    fulfil(Wish::Suspend, job).await
}
