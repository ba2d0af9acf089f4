//! `millrace completions`: what a shell needs to complete the commands.

use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use crate::output;

/// The program where it is no plugin.
const PROGRAM: &str = "millrace";

/// What kubectl asks for the completions of a plugin: an executable `kubectl_complete-millrace`.
const FOR_KUBECTL: &str = include_str!("kubectl_complete.sh");

/// Prints the completions for a shell, or for kubectl.
///
/// For bash: `source <(millrace completions bash)`. For `kubectl millrace`, in any shell for which kubectl
/// itself has completions: write what is printed for kubectl to a file `kubectl_complete-millrace` on the
/// PATH, and make it executable.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Completer,
}

/// Who completes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Completer {
    Bash,
    Elvish,
    Fish,
    #[value(name = "powershell")]
    PowerShell,
    Zsh,
    Kubectl,
}

/// Runs the command; `cli` is the whole program.
pub fn run(args: CompletionsArgs, mut cli: Command) -> anyhow::Result<ExitCode> {
    let CompletionsArgs { shell } = args;
    let shell = match shell {
        Completer::Bash => Shell::Bash,
        Completer::Elvish => Shell::Elvish,
        Completer::Fish => Shell::Fish,
        Completer::PowerShell => Shell::PowerShell,
        Completer::Zsh => Shell::Zsh,
        Completer::Kubectl => {
            output::line(FOR_KUBECTL.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    // A shell completes by the name of a file, and that of a plugin has no blank in it.
    let program = cli.get_name().to_owned();
    // Those for bash know no subcommand of a program with a hyphen in its name, so a plugin has them under
    // the other name of the program.
    let is_renamed = shell == Shell::Bash && program != PROGRAM;
    if is_renamed {
        cli = cli.name(PROGRAM);
    }
    let named = cli.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli, named, &mut script);
    output::line(String::from_utf8(script)?.trim_end())?;
    if is_renamed {
        output::line(&format!(
            "complete -F _{PROGRAM} -o bashdefault -o default {program}"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
