//! What the program says of itself.

use crate::support::millrace;

#[test]
fn the_help_names_every_exit_code() {
    let help = millrace(&["--help"]).expect_code(0).stdout;
    for code in ["0 done", "1 failed", "2 wrong usage", "3 finished", "130"] {
        assert!(help.contains(code), "{code} is missing in\n{help}");
    }
}

#[test]
fn every_command_and_flag_is_described() {
    for command in ["run", "lint", "results", "errors"] {
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
}
