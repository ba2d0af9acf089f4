//! The `millrace` command, which is also `kubectl millrace`.

mod commands;
mod display;
mod exit;
mod local_models;
mod local_server;
mod output;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use millrace_telemetry::TelemetryOptions;

/// Runs datasets through models: every row ends as exactly one result or one reported error.
///
/// Exit codes: 0 done, rows that ended as reported errors included; 1 failed; 2 wrong usage or a
/// manifest that was refused; 3 finished, but some shards could not be worked off at all; 130
/// interrupted, and the same command goes on.
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
}

#[tokio::main]
async fn main() -> ExitCode {
    let telemetry = millrace_telemetry::start(TelemetryOptions {
        service: "millrace",
        log: "warn",
        traces: true,
    });
    let done = match Cli::parse().command {
        Command::Run(args) => commands::run::run(args).await,
        Command::Lint(args) => commands::lint::run(args),
        Command::Results(args) => commands::results::run(args).await,
        Command::Errors(args) => commands::errors::run(args).await,
    };
    telemetry.flush().await;
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
