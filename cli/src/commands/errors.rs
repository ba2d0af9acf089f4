//! `millrace errors`: prints the rows of an output that ended as errors, in input order.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use futures::TryStreamExt;
use millrace_protocol::result::ErrorLine;
use millrace_worker::output as worker_output;

use crate::cluster::connect::ClusterArgs;
use crate::display::OutputMode;
use crate::output::{Lines, Opened};

/// Width of the column of codes: the longest one is `tokenize_failed`.
const CODE_WIDTH: usize = 15;

/// Prints the rows of a job that ended as errors, in input order.
///
/// While the run goes on, the rows of committed shards are printed.
#[derive(Debug, Args)]
pub struct ErrorsArgs {
    /// The job's output: a folder, a URI such as s3://bucket/folder, or batchjob/NAME or @latest, which
    /// are looked up in the cluster.
    #[arg(value_name = "OUTPUT")]
    location: String,
    /// Most lines to print.
    #[arg(long, value_name = "LINES")]
    limit: Option<u64>,
    /// As a table, or as JSON lines.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputMode,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: ErrorsArgs) -> anyhow::Result<ExitCode> {
    let ErrorsArgs {
        location,
        limit,
        output,
        cluster,
    } = args;
    let Opened { location, visible } = Opened::of(&location, &cluster).await?;
    let mut errors = std::pin::pin!(worker_output::errors(&location, &visible.parts));
    let mut lines = Lines::new(limit);
    let mut by_code: BTreeMap<&str, u64> = BTreeMap::new();
    while lines.wants_more() {
        let Some(line) = errors.try_next().await? else {
            break;
        };
        *by_code.entry(line.error.code.as_str()).or_default() += 1;
        match output {
            OutputMode::Json => lines.write(&serde_json::to_string(&line)?)?,
            OutputMode::Text => lines.write(&text(&line))?,
        }
    }
    lines.finish()?;
    if output == OutputMode::Text {
        eprintln!("{}", summary(&by_code));
    }
    Ok(ExitCode::SUCCESS)
}

/// One row of the table. The position comes after the code because its width is not known before
/// the last line, and lines are printed as they are read.
fn text(line: &ErrorLine) -> String {
    let ErrorLine {
        id,
        position,
        route,
        arm,
        error,
        duplicate_of,
    } = line;
    let code = error.code.as_str();
    let id = id
        .as_ref()
        .map_or(String::new(), |id| format!(" (id {id:?})"));
    let step = error
        .step
        .as_ref()
        .map_or(String::new(), |step| format!("step {step}: "));
    let like = duplicate_of
        .as_ref()
        .map_or(String::new(), |like| format!(" (as {})", like.position));
    let route = route.as_ref().map_or(String::new(), |route| match arm {
        Some(arm) => format!("route {route}/{arm}: "),
        None => format!("route {route}: "),
    });
    format!(
        "{code:CODE_WIDTH$}  {position}{id}{like}  {route}{step}{}",
        error.message
    )
}

fn summary(by_code: &BTreeMap<&str, u64>) -> String {
    let total: u64 = by_code.values().sum();
    if total == 0 {
        return "no errors".to_owned();
    }
    let codes: Vec<String> = by_code
        .iter()
        .map(|(code, count)| format!("{count} {code}"))
        .collect();
    format!("{total} errors: {}", codes.join(", "))
}
