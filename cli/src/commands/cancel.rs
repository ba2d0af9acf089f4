//! `millrace cancel`: ends a job before its time.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::change::Wish;
use crate::cluster::fulfil::{JobArgs, fulfil};

/// Ends a job before its time. It cannot be undone.
///
/// Its workers give their shards back, and what is committed stays in the output. Nothing is asked.
#[derive(Debug, Args)]
pub struct CancelArgs {
    #[command(flatten)]
    job: JobArgs,
}

/// Runs the command.
pub async fn run(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let CancelArgs { job } = args;
    fulfil(Wish::Cancel, job).await
}
