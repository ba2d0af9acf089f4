//! What the program says of itself.

use std::process::Command;

use crate::support::{Ended, millrace};

#[test]
fn the_help_names_every_exit_code() {
    let help = millrace(&["--help"]).expect_code(0).stdout;
    for code in ["0 done", "1 failed", "2 wrong usage", "3 finished", "130"] {
        assert!(help.contains(code), "{code} is missing in\n{help}");
    }
}

const COMMANDS: [&str; 16] = [
    "run",
    "lint",
    "results",
    "errors",
    "submit",
    "status",
    "list",
    "top",
    "logs",
    "suspend",
    "resume",
    "cancel",
    "retry",
    "check",
    "report",
    "completions",
];

#[test]
fn every_command_is_known_to_these_tests() {
    let help = millrace(&["--help"]).expect_code(0).stdout;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let named: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert_eq!(named, COMMANDS);
}

#[test]
fn every_command_and_flag_is_described() {
    for command in COMMANDS {
        let help = millrace(&[command, "--help"]).expect_code(0).stdout;
        let flags = help
            .lines()
            .filter(|line| line.trim_start().starts_with('-'))
            .count();
        assert!(flags > 0, "{help}");
        // Without a description clap prints nothing after a flag.
        let short = millrace(&[command, "-h"]).expect_code(0).stdout;
        for line in short
            .lines()
            .filter(|line| line.trim_start().starts_with('-'))
        {
            assert!(
                line.trim().contains("  "),
                "{command}: {line} is not described"
            );
        }
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    millrace(&[]).expect_code(2);
    millrace(&["run"]).expect_code(2);
    millrace(&["lint", "--fast"]).expect_code(2);
    millrace(&["status"]).expect_code(2);
    millrace(&["retry", "--failed-only"]).expect_code(2);
    millrace(&["retry", "embed", "-f", "job.yaml", "--failed-only"]).expect_code(2);
    millrace(&["status", "pod/embed"]).expect_code(2);
    millrace(&["list", "-A", "-n", "tenant"]).expect_code(2);
}

#[test]
fn a_retry_without_its_flag_is_told_why_it_needs_one() {
    let ended = millrace(&["retry", "embed"]).expect_code(2);
    assert!(ended.stderr.contains("--failed-only"), "{ended:?}");
    assert!(ended.stderr.contains("never computed again"), "{ended:?}");
}

#[test]
fn a_retry_says_both_ways_to_name_a_job() {
    let ended = millrace(&["retry"]).expect_code(2);
    for expected in [
        "<NAME|--file <PATH>>",
        "Usage: millrace retry <NAME> --failed-only [OPTIONS]\n",
        "\n       millrace retry -f <PATH> --failed-only [OPTIONS]\n",
    ] {
        assert!(ended.stderr.contains(expected), "{expected}: {ended:#?}");
    }
}

#[test]
fn how_to_print_is_a_format_and_that_of_errors_is_their_own() {
    for command in COMMANDS {
        let help = millrace(&[command, "--help"]).expect_code(0).stdout;
        let is_right = !help.contains("--output <") || help.contains("--output <FORMAT>");
        assert!(is_right, "{help}");
    }
    let errors = millrace(&["errors", "--help"]).expect_code(0).stdout;
    assert!(!errors.contains("the job with its status"), "{errors}");
}

#[test]
fn a_plugin_of_kubectl_says_how_kubectl_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-millrace");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_millrace"), &plugin).unwrap();
    let usage = |arguments: &[&str]| {
        let output = Command::new(&plugin).args(arguments).output().unwrap();
        Ended::from(output).expect_code(0).stdout
    };
    assert!(usage(&["--help"]).contains("Usage: kubectl millrace <COMMAND>"));
    assert!(usage(&["status", "--help"]).contains("Usage: kubectl millrace status"));
    assert!(usage(&["completions", "bash"]).contains("kubectl-millrace"));
}

#[test]
fn completions_are_there_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = millrace(&["completions", shell]).expect_code(0).stdout;
        assert!(script.contains("millrace") && script.contains("submit"));
    }
}

#[test]
fn kubectl_completes_the_plugin_by_a_script_that_the_plugin_prints() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-millrace");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_millrace"), &plugin).unwrap();
    let script = folder.path().join("kubectl_complete-millrace");
    let printed = millrace(&["completions", "kubectl"]).expect_code(0).stdout;
    std::fs::write(&script, printed).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", folder.path().display());
    // As kubectl calls it: the words after `kubectl millrace`, the last one to be completed.
    let completed = |words: &[&str]| {
        let mut shell = Command::new("bash");
        let shell = shell.arg(&script).args(words).env("PATH", &path);
        let ended = Ended::from(shell.output().unwrap()).expect_code(0);
        let candidates = ended.stdout.strip_suffix(":4\n").expect("the last line");
        candidates.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(completed(&["stat"]), ["status"]);
    assert!(completed(&[""]).contains(&"submit".to_owned()));
    assert!(completed(&["status", "--name"]).contains(&"--namespace".to_owned()));
    assert_eq!(completed(&["completions", "kube"]), ["kubectl"]);
    let nothing: [&str; 0] = [];
    assert_eq!(completed(&["nonsense"]), nothing);
}
