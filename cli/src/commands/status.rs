//! `millrace status`: everything about one job.

use std::process::ExitCode;

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::cluster::connect::ClusterArgs;
use crate::cluster::end::end;
use crate::cluster::follow::follow;
use crate::cluster::gather::gather;
use crate::cluster::jobs::job_name;
use crate::cluster::show::{Format, bare, document};
use crate::cluster::summary;
use crate::output;

/// Shows how a job is doing: progress, workers, failed rows, conditions, events, and what to do.
///
/// With --watch it follows the job to its end and exits as `submit --watch` does.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The job: its name, batchjob/NAME, or @latest, the newest one.
    #[arg(value_parser = job_name)]
    name: String,
    /// Follow the job to its end: a bar on a terminal, lines in a pipe.
    #[arg(short, long)]
    watch: bool,
    /// How to print it; JSON and YAML give the object.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let StatusArgs {
        name,
        watch,
        output: format,
        cluster,
    } = args;
    let connection = cluster.connect().await?;
    let job = connection.job(&name).await?;
    let name = job.name_any();
    let is_text = matches!(format, Format::Text | Format::Wide);
    if is_text && !(watch && end(&job).is_some()) {
        let seen = gather(&connection, job).await?;
        let wide = format == Format::Wide;
        let now = Timestamp::now();
        let lines = summary::lines(&seen, wide, &connection.invocation, now);
        output::line(&lines.join("\n"))?;
    } else if !watch {
        output::line(document(&bare(job), format)?.trim_end())?;
    }
    if watch {
        return follow(&connection, &name, format).await;
    }
    Ok(ExitCode::SUCCESS)
}
