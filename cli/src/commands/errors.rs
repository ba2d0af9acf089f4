//! `millrace errors`: prints the rows of an output that ended as errors, in input order.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use futures::TryStreamExt;
use millrace_protocol::result::ErrorLine;
use millrace_worker::output as worker_output;

use crate::cluster::connect::ClusterArgs;
use crate::cluster::show::{count, counted};
use crate::output::{Lines, Opened};

/// Width of the column of codes: the longest one is `tokenize_failed`.
const CODE_WIDTH: usize = 15;

/// How rows that ended as errors are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ErrorsFormat {
    /// For people: a table, and a sum below it.
    #[default]
    Text,
    /// For programs: JSON lines, one per row, as in the error files.
    Json,
}

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
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: ErrorsFormat,
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
    let total: u64 = visible
        .parts
        .iter()
        .map(|part| part.commit.rows.failed)
        .sum();
    let mut errors = std::pin::pin!(worker_output::errors(&location, &visible.parts));
    let mut lines = Lines::new(limit);
    let mut by_code: BTreeMap<&str, u64> = BTreeMap::new();
    while lines.wants_more() {
        let Some(line) = errors.try_next().await? else {
            break;
        };
        *by_code.entry(line.error.code.as_str()).or_default() += 1;
        match output {
            ErrorsFormat::Json => lines.write(&serde_json::to_string(&line)?)?,
            ErrorsFormat::Text => lines.write(&text(&line))?,
        }
    }
    lines.finish()?;
    if output == ErrorsFormat::Text {
        eprintln!("{}", summary(&by_code, total));
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

/// What was shown of so many errors.
fn summary(by_code: &BTreeMap<&str, u64>, total: u64) -> String {
    let shown: u64 = by_code.values().sum();
    if total == 0 {
        return "no errors".to_owned();
    }
    let codes: Vec<String> = by_code
        .iter()
        .map(|(code, errors)| format!("{} {code}", count(*errors)))
        .collect();
    let codes = codes.join(", ");
    let all = counted(total, "error");
    if shown == total {
        return format!("{all}: {codes}");
    }
    format!("{} of {all} shown: {codes}", count(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_how_many_errors_there_are_besides_those_that_are_shown() {
        let shown = BTreeMap::from([("empty_text", 1), ("missing_field", 1_200)]);
        let codes = "1 empty_text, 1,200 missing_field";
        assert_eq!(summary(&shown, 1_201), format!("1,201 errors: {codes}"));
        assert_eq!(
            summary(&shown, 6_000),
            format!("1,201 of 6,000 errors shown: {codes}")
        );
        assert_eq!(summary(&BTreeMap::new(), 0), "no errors");
        assert_eq!(summary(&BTreeMap::from([("x", 1)]), 1), "1 error: 1 x");
    }
}
