//! The `millrace` command, which is also `kubectl millrace`.

mod board;
mod cluster;
mod commands;
mod display;
mod exit;
mod invocation;
mod local_models;
mod local_server;
mod manifests;
mod output;
mod report;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use millrace_telemetry::TelemetryOptions;

use invocation::Invocation;

/// Runs datasets through models: every row ends as exactly one result or one reported error.
///
/// Exit codes: 0 done, rows that ended as reported errors included; 1 failed, cancelled or past the
/// deadline; 2 wrong usage or a manifest that was refused; 3 finished, but some shards could not be
/// worked off at all; 130 interrupted, and the same command goes on.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(commands::run::RunArgs),
    Lint(commands::lint::LintArgs),
    Results(commands::results::ResultsArgs),
    Errors(commands::errors::ErrorsArgs),
    Submit(commands::submit::SubmitArgs),
    Status(commands::status::StatusArgs),
    List(commands::list::ListArgs),
    Top(commands::top::TopArgs),
    Logs(commands::logs::LogsArgs),
    Suspend(commands::suspend::SuspendArgs),
    Resume(commands::resume::ResumeArgs),
    Cancel(commands::cancel::CancelArgs),
    Retry(commands::retry::RetryArgs),
    Check(commands::check::CheckArgs),
    Report(commands::report::ReportArgs),
    Completions(commands::completions::CompletionsArgs),
}

/// What a person is told when a log says nothing else: what the client of Kubernetes logs of a
/// failed call is said by the error that the call ends with.
const LOG_FILTER: &str = "warn,kube_client=off,kube_runtime=off";

#[tokio::main]
async fn main() -> ExitCode {
    let telemetry = millrace_telemetry::start(TelemetryOptions {
        service: "millrace",
        log: LOG_FILTER,
        traces: true,
    });
    let done = match parsed().command {
        Command::Run(args) => commands::run::run(args).await,
        Command::Lint(args) => commands::lint::run(args),
        Command::Results(args) => commands::results::run(args).await,
        Command::Errors(args) => commands::errors::run(args).await,
        Command::Submit(args) => commands::submit::run(args).await,
        Command::Status(args) => commands::status::run(args).await,
        Command::List(args) => commands::list::run(args).await,
        Command::Top(args) => commands::top::run(args).await,
        Command::Logs(args) => commands::logs::run(args).await,
        Command::Suspend(args) => commands::suspend::run(args).await,
        Command::Resume(args) => commands::resume::run(args).await,
        Command::Cancel(args) => commands::cancel::run(args).await,
        Command::Retry(args) => commands::retry::run(args).await,
        Command::Check(args) => commands::check::run(args).await,
        Command::Report(args) => commands::report::run(args).await,
        Command::Completions(args) => commands::completions::run(args, program()),
    };
    telemetry.flush().await;
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The arguments; wrong ones end this process with a word on the right ones.
fn parsed() -> Cli {
    let matches = program().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The program under the name by which it was called.
fn program() -> clap::Command {
    let called = Invocation::new().program();
    let retry = commands::retry::usage(called);
    let command = Cli::command()
        .bin_name(called)
        .mut_subcommand("retry", |command| command.override_usage(retry));
    match called {
        "millrace" => command,
        _ => command.name("kubectl-millrace"),
    }
}
