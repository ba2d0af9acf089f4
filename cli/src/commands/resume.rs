//! `millrace resume`: lets a suspended job go on.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::change::Wish;
use crate::cluster::fulfil::{JobArgs, fulfil};

/// Lets a suspended job go on where it was.
///
/// A job that is not suspended stays as it is.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    job: JobArgs,
}

/// Runs the command.
pub async fn run(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    let ResumeArgs { job } = args;
    fulfil(Wish::Resume, job).await
}
