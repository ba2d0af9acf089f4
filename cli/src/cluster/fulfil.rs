//! Brings a wish about: reads the job, decides, patches, and says what happens next.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use kube::ResourceExt;

use super::change::{Change, Wish, decide};
use super::connect::ClusterArgs;
use super::jobs::job_name;
use crate::output;

/// A job, and where it is.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job: its name, batchjob/NAME, or @latest, the newest one.
    #[arg(value_parser = job_name)]
    pub name: String,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Brings the wish about. What is so already is said, and is no error.
pub async fn fulfil(wish: Wish, args: JobArgs) -> anyhow::Result<ExitCode> {
    let JobArgs { name, cluster } = args;
    let connection = cluster.connect().await?;
    let job = connection.job(&name).await?;
    match decide(wish, &job, &connection.invocation) {
        Change::Already(said) => output::line(&said)?,
        Change::Refused(why) => bail!(why),
        Change::Patch { patch, said } => {
            let patched = connection.patch(&job.name_any(), &patch).await?;
            if !wish.is_met(&job, &patched) {
                bail!(
                    "the API server dropped the field: its CRDs are older than this program; upgrade \
                     the chart, `{}` says what they lack",
                    connection.invocation.command("check")
                );
            }
            output::line(&said)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
