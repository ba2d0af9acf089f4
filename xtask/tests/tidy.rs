//! What the project holds itself to and no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines above which a file of Rust outside tests wants a reason.
const LINES_MAX: usize = 500;

/// Longer files, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

fn repository() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .parent()
        .expect("xtask has a parent")
        .to_owned()
}

/// The tracked files that are there, relative to the repository.
fn tracked() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(repository())
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "git ls-files failed");
    let names = String::from_utf8(output.stdout).expect("names are UTF-8");
    let there = |name: &&str| !name.is_empty() && repository().join(name).is_file();
    names.split('\0').filter(there).map(str::to_owned).collect()
}

fn text(name: &str) -> Option<String> {
    String::from_utf8(fs::read(repository().join(name)).expect("a tracked file can be read")).ok()
}

#[test]
fn a_long_file_has_a_reason() {
    let is_test = |name: &str| name.contains("tests/") || name.ends_with("tests.rs");
    let mut unlisted = Vec::new();
    for name in tracked()
        .iter()
        .filter(|name| name.ends_with(".rs") && !is_test(name))
    {
        let lines = text(name).expect("Rust is UTF-8").lines().count();
        let listed = LONG_FILES
            .iter()
            .any(|(listed, reason)| listed == name && !reason.is_empty());
        if lines > LINES_MAX && !listed {
            unlisted.push(format!("{name}: {lines} lines"));
        }
    }
    assert!(
        unlisted.is_empty(),
        "cut these, or list them with a reason in LONG_FILES: {unlisted:#?}"
    );
}

#[test]
fn the_list_of_long_files_names_no_file_that_became_short() {
    for (name, _) in LONG_FILES {
        let lines = text(name).map_or(0, |text| text.lines().count());
        assert!(
            lines > LINES_MAX,
            "{name} has {lines} lines: take it off LONG_FILES"
        );
    }
}

#[test]
fn no_tracked_file_names_a_place_of_one_machine() {
    let home = std::env::var("HOME").unwrap_or_default();
    // A folder that every machine has says nothing of one.
    let above = repository()
        .parent()
        .filter(|above| *above != std::env::temp_dir())
        .map(|above| above.display().to_string())
        .unwrap_or_default();
    let places: Vec<String> = [home, above]
        .into_iter()
        .filter(|it| it.len() > 1)
        .map(|it| format!("{it}/"))
        .collect();
    let mut found = Vec::new();
    for name in tracked() {
        let Some(text) = text(&name) else { continue };
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                found.push(format!("{name}:{}: {line}", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_readme_opens_with_the_two_commands() {
    let readme = text("README.md").expect("README.md is UTF-8");
    let first_block = readme.split("```").nth(1).unwrap_or_default();
    for command in ["cargo xtask demo", "cargo xtask test"] {
        assert!(
            first_block.contains(command),
            "the first code block of README.md lacks `{command}`"
        );
    }
}

#[test]
fn integration_runs_the_command_of_the_readme() {
    let script = text(".ci/run").expect(".ci/run is UTF-8");
    assert!(script.lines().any(|line| line == "cargo xtask test"));
}
