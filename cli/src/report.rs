//! What a command says at its end: a summary for people, or the job with its status for programs.

use std::process::ExitCode;
use std::time::Duration;

use futures::TryStreamExt;
use indicatif::{HumanCount, HumanDuration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use millrace_crds::batch_job::{RouteCounts, RowCounts, SampleError, ShardCounts, Spent};
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_protocol::manifest::{FailedShard, LivePart, Manifest};
use millrace_protocol::plan::{Dedup, Difference};
use millrace_protocol::plural::plural;
use millrace_protocol::tally::{Rows, Tally};
use millrace_worker::job::CheckedJob;
use millrace_worker::manifests::Loaded;
use millrace_worker::output as worker_output;
use millrace_worker::store::Stores;
use millrace_worker::work::GiveUp;

use crate::cluster::show::{route_text, spent_text};
use crate::display::OutputMode;
use crate::invocation::Invocation;
use crate::{exit, output};

/// Errors that are shown; the rest is one command away.
const SAMPLE_ERRORS_MAX: usize = 20;
/// Errors that a person is shown.
const TEXT_ERRORS_MAX: usize = 3;
/// Shards without results that a person is shown; the manifest lists them all.
const TEXT_SHARDS_MAX: usize = 10;

/// How a job came to its end.
#[derive(Debug, Clone)]
pub enum End {
    /// This command finished it in this time.
    Finished(Duration),
    /// It was finished before.
    Before,
    /// This command gave it up.
    GivenUp {
        /// Why.
        give_up: GiveUp,
        /// After how long.
        took: Duration,
        /// The command that goes on with it.
        again: String,
    },
}

impl End {
    /// How long this command took.
    fn took(&self) -> Option<Duration> {
        match self {
            End::Finished(took) | End::GivenUp { took, .. } => Some(*took),
            End::Before => None,
        }
    }
}

/// Reports a job that this command finished, or gave up.
pub async fn finished(
    stores: &Stores,
    loaded: &Loaded,
    manifest: &Manifest,
    mode: OutputMode,
    end: End,
) -> anyhow::Result<ExitCode> {
    let errors = sample_errors(stores, loaded, manifest).await?;
    match mode {
        OutputMode::Json => {
            let job = BatchJob {
                status: Some(status(loaded, manifest, errors, &end)),
                ..loaded.batch_job.clone()
            };
            output::line(&serde_json::to_string(&job)?)?;
        }
        OutputMode::Text => {
            let CheckedJob { name, output, .. } = &loaded.job;
            output::line(&summary(name, &output.uri, manifest, &errors, &end))?;
        }
    }
    Ok(exit::of(manifest))
}

/// Says that the command `again` goes on after an interruption.
pub fn stopped(again: &str, mode: OutputMode) {
    if mode == OutputMode::Text {
        eprintln!("stopped; what is committed is kept. The same command goes on:");
        eprintln!("  {}", Invocation::new().command(again));
    }
}

/// Why a job was given up, and how the command `again` goes on with it.
fn advice(give_up: GiveUp, again: &str) -> String {
    let (why, what) = match give_up {
        GiveUp::TooManyFailedRows => (
            "more rows failed than spec.maxFailedRows allows; what is done stays",
            "change it",
        ),
        GiveUp::TooManyFailedIndexes => (
            "more shards were given up than spec.maxFailedIndexes allows; what is done stays",
            "change it",
        ),
        GiveUp::BudgetSpent => (
            "spec.budget.maxCost is spent; what is done stays, and so do the answers that are paid",
            "raise it",
        ),
    };
    format!("{why}: {what}, and `{again}` goes on from there")
}

/// What the calls of the job cost.
fn spent(manifest: &Manifest) -> Option<Spent> {
    let Tally { rows, cost, .. } = manifest.totals;
    let currency = manifest.currency.as_ref()?;
    Some(Spent::of(cost, rows.total(), currency))
}

fn summary(
    name: &str,
    output: &str,
    manifest: &Manifest,
    errors: &[SampleError],
    end: &End,
) -> String {
    let Tally {
        rows: Rows {
            succeeded,
            failed,
            skipped,
        },
        tokens,
        cost: _,
    } = manifest.totals;
    let mut lines = vec![headline(name, end)];
    let (ok, bad, left_out) = (
        HumanCount(succeeded),
        HumanCount(failed),
        HumanCount(skipped),
    );
    lines.push(format!(
        "  rows     {ok} succeeded, {bad} failed, {left_out} skipped"
    ));
    if let Some(difference) = &manifest.difference {
        lines.push(format!("  carried  {}", carried_text(difference)));
    }
    if let Some(Dedup { duplicates, .. }) = &manifest.dedup {
        let copied = HumanCount(*duplicates);
        lines.push(format!(
            "  copied   {copied} from other rows, as duplicates"
        ));
    }
    lines.push(format!("  tokens   {}", HumanCount(tokens)));
    lines.extend(spent(manifest).map(|spent| format!("  cost     {}", spent_text(&spent))));
    let currency = manifest.currency.as_deref();
    let routes = manifest.routes.iter().map(RouteCounts::from);
    lines.extend(routes.map(|it| format!("  route    {}", route_text(&it, currency))));
    lines.push(format!("  output   {output}"));
    if let Some(merged) = &manifest.merged {
        lines.push(format!("  merged   {output}/{merged}"));
    }
    if let Some(table) = &manifest.postgres {
        lines.push(format!("  loaded   table {table}"));
    }
    lines.extend(given_up(&manifest.failed_shards, output));
    for error in errors.iter().take(TEXT_ERRORS_MAX) {
        lines.push(format!(
            "  {} {}: {}",
            error.position, error.code, error.message
        ));
    }
    lines.extend(next(output, succeeded, failed));
    lines.join("\n")
}

/// The commands that show what there is in the output, if there is anything.
fn next(output: &str, succeeded: u64, failed: u64) -> Vec<String> {
    let command = |words: String| format!("  {}", Invocation::new().command(&words));
    let results = command(format!("results {output} --limit 3"));
    let errors = command(format!("errors {output}"));
    let commands = [(succeeded, results), (failed, errors)];
    let commands = commands.into_iter().filter(|(rows, _)| *rows > 0);
    let mut lines: Vec<String> = commands.map(|(_, command)| command).collect();
    if !lines.is_empty() {
        lines.insert(0, "next:".to_owned());
    }
    lines
}

/// How the job came to its end.
fn headline(name: &str, end: &End) -> String {
    match end {
        End::Finished(took) => format!("{name} finished in {}", HumanDuration(*took)),
        End::Before => format!("{name} was finished before: nothing to do"),
        End::GivenUp {
            give_up,
            took,
            again,
        } => format!(
            "{name} stopped after {}: {}",
            HumanDuration(*took),
            advice(*give_up, again)
        ),
    }
}

/// The shards without results, as far as a person is shown them.
fn given_up(shards: &[FailedShard], output: &str) -> Vec<String> {
    let shown = shards.iter().take(TEXT_SHARDS_MAX);
    let shown = shown.map(|it| format!("  shard {} was given up: {}", it.shard, it.error));
    let mut lines: Vec<String> = shown.collect();
    let unnamed = shards.len().saturating_sub(TEXT_SHARDS_MAX);
    if unnamed > 0 {
        let noun = plural(unnamed as u64, "shard");
        lines.push(format!(
            "  {unnamed} more {noun} without results; see {output}/manifest.json"
        ));
    }
    lines
}

/// How rows compare with those of an earlier output.
pub fn carried_text(difference: &Difference) -> String {
    let Difference {
        from,
        unchanged,
        fresh,
        gone,
    } = difference;
    let [unchanged, fresh, gone] = [unchanged, fresh, gone].map(|rows| HumanCount(*rows));
    format!("{unchanged} unchanged from {from}; {fresh} new or changed, {gone} gone")
}

async fn sample_errors(
    stores: &Stores,
    loaded: &Loaded,
    manifest: &Manifest,
) -> anyhow::Result<Vec<SampleError>> {
    let opened = stores.open(&loaded.job.output.uri)?;
    let lines = worker_output::errors(&opened, &manifest.parts);
    let mut lines = std::pin::pin!(lines);
    let mut samples = Vec::new();
    while samples.len() < SAMPLE_ERRORS_MAX {
        let Some(line) = lines.try_next().await? else {
            break;
        };
        samples.push(SampleError {
            position: line.position.to_string(),
            code: line.error.code.to_string(),
            message: line.error.message,
        });
    }
    Ok(samples)
}

fn status(
    loaded: &Loaded,
    manifest: &Manifest,
    sample_errors: Vec<SampleError>,
    end: &End,
) -> BatchJobStatus {
    let Rows {
        succeeded,
        failed,
        skipped,
    } = manifest.totals.rows;
    let of_run = |part: &&LivePart| part.run == manifest.run;
    let committed = manifest.parts.iter().filter(of_run).count();
    let given_up = manifest.failed_shards.len();
    let total = committed + given_up;
    let percent = (committed * 100).checked_div(total).unwrap_or(100);
    let finished_at: Option<Time> = manifest
        .finished_at
        .parse()
        .ok()
        .map(|at: k8s_openapi::jiff::Timestamp| Time(at));
    BatchJobStatus {
        conditions: vec![succeeded_condition(manifest, end, finished_at.clone())],
        // A file has no generation.
        observed_generation: None,
        run: Some(manifest.run),
        start_time: None,
        workers: None,
        eta: None,
        progress: Some(format!("{percent}%")),
        rows: Some(RowCounts {
            succeeded,
            failed,
            skipped,
        }),
        shards: Some(ShardCounts {
            total: total as u32,
            committed: committed as u32,
            failed: given_up as u32,
            waiting: 0,
        }),
        failed_indexes: manifest.failed_indexes(),
        tokens: Some(manifest.totals.tokens),
        cost: spent(manifest),
        // It is over: what it took is known.
        estimate: None,
        rows_per_second: end.took().map(|took| {
            let rows = manifest.totals.rows.total() as f64;
            (rows / took.as_secs_f64().max(1e-3) * 10.0).round() / 10.0
        }),
        routes: manifest.routes.iter().map(RouteCounts::from).collect(),
        completion_time: finished_at,
        output: Some(loaded.job.output.uri.clone()),
        sample_errors,
    }
}

fn succeeded_condition(manifest: &Manifest, end: &End, at: Option<Time>) -> Condition {
    let (status, reason, message) = if manifest.complete {
        ("True", "Completed", "every shard is committed".to_owned())
    } else if let End::GivenUp { give_up, again, .. } = end {
        ("False", give_up.reason(), advice(*give_up, again))
    } else {
        let failed = manifest.failed_shards.len();
        (
            "False",
            "ShardsFailed",
            match failed {
                1 => "1 shard was given up; see failedShards".to_owned(),
                _ => format!("{failed} shards were given up; see failedShards"),
            },
        )
    };
    Condition {
        type_: "Succeeded".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: at.unwrap_or_else(|| Time(k8s_openapi::jiff::Timestamp::now())),
        observed_generation: None,
    }
}
