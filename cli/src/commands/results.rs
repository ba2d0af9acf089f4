//! `millrace results`: prints the result lines of an output, in input order.

use std::process::ExitCode;

use clap::Args;
use futures::TryStreamExt;
use millrace_worker::output as worker_output;
use millrace_worker::store::{LinkLocal, Stores};

use crate::output::{Lines, Opened};

/// Prints the results of a job, one JSON line per row, in input order.
///
/// While the run goes on, the rows of committed shards are printed.
#[derive(Debug, Args)]
pub struct ResultsArgs {
    /// The job's output: a folder or a URI such as s3://bucket/folder.
    #[arg(value_name = "OUTPUT")]
    output: String,
    /// Most lines to print.
    #[arg(long, value_name = "LINES")]
    limit: Option<u64>,
}

/// Runs the command.
pub async fn run(args: ResultsArgs) -> anyhow::Result<ExitCode> {
    let ResultsArgs { output, limit } = args;
    let Opened { location, visible } =
        Opened::open(&Stores::from_env(LinkLocal::Allowed), &output).await?;
    let mut results = std::pin::pin!(worker_output::results(&location, &visible.parts));
    let mut lines = Lines::new(limit);
    while lines.wants_more() {
        let Some(line) = results.try_next().await? else {
            break;
        };
        lines.write(&line)?;
    }
    lines.finish()?;
    Ok(ExitCode::SUCCESS)
}
