//! `millrace results`: prints the result lines of an output, in input order.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::TryStreamExt;
use millrace_worker::output::{self as worker_output, Follower, Visible};

use crate::cluster::connect::ClusterArgs;
use crate::output::{self, Lines, Opened};

/// How often it is looked for more shards.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints the results of a job, one JSON line per row, in input order.
///
/// While the run goes on, the rows of committed shards are printed.
#[derive(Debug, Args)]
pub struct ResultsArgs {
    /// The job's output: a folder, a URI such as s3://bucket/folder, or batchjob/NAME or @latest, which
    /// are looked up in the cluster.
    #[arg(value_name = "OUTPUT")]
    output: String,
    /// Most lines to print.
    #[arg(long, value_name = "LINES")]
    limit: Option<u64>,
    /// Stay until the run is finished, and print the rows of each shard as it is committed: in input
    /// order within a shard.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: ResultsArgs) -> anyhow::Result<ExitCode> {
    let ResultsArgs {
        output,
        limit,
        follow,
        cluster,
    } = args;
    if follow {
        return self::follow(&output, limit, &cluster).await;
    }
    let Opened { location, visible } = Opened::of(&output, &cluster).await?;
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

async fn follow(
    named: &str,
    limit: Option<u64>,
    cluster: &ClusterArgs,
) -> anyhow::Result<ExitCode> {
    let location = output::locate(named, cluster).await?;
    let mut follower = Follower::default();
    let mut lines = Lines::new(limit);
    let mut waits = false;
    loop {
        let Visible { parts, finished } = follower.look(&location).await?;
        if parts.is_empty() && !finished && !waits {
            eprintln!("waiting for rows in {named}");
            waits = true;
        }
        let mut results = std::pin::pin!(worker_output::results(&location, &parts));
        while lines.wants_more()
            && let Some(line) = results.try_next().await?
        {
            lines.write(&line)?;
        }
        lines.flush()?;
        if finished || !lines.wants_more() {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
