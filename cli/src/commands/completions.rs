//! `millrace completions`: what a shell needs to complete the commands.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

/// Prints the completions for a shell.
///
/// For bash: `source <(millrace completions bash)`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command; `cli` is the whole program.
pub fn run(args: CompletionsArgs, mut cli: Command) -> anyhow::Result<ExitCode> {
    let CompletionsArgs { shell } = args;
    let mut script = Vec::new();
    // A shell completes by the name of a file, and that of a plugin has no blank in it.
    let program = cli.get_name().to_owned();
    clap_complete::generate(shell, &mut cli, program, &mut script);
    output::line(String::from_utf8(script)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
