//! Tests that could not run on this machine. They note it themselves, since for libtest they passed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Names the file to the tests.
pub const SKIPPED_TESTS: &str = "MILLRACE_SKIPPED_TESTS";

/// The file of this run, removed when dropped.
pub struct Notes {
    file: PathBuf,
}

impl Notes {
    /// An empty one.
    pub fn begin() -> Result<Self> {
        let name = format!("millrace-skipped-tests-{}", std::process::id());
        let file = std::env::temp_dir().join(name);
        fs::write(&file, "")?;
        Ok(Self { file })
    }

    /// Where it is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Why each of the skipped tests was skipped, by its name.
    pub fn read(&self) -> Result<BTreeMap<String, String>> {
        Ok(by_test(&fs::read_to_string(&self.file)?))
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        // A temporary file that stays is no failure of the tests.
        fs::remove_file(&self.file).ok();
    }
}

/// Why each test was skipped. One that lacks several things notes each of them and counts once.
fn by_test(notes: &str) -> BTreeMap<String, String> {
    let lines = notes.lines().filter_map(|line| line.split_once('\t'));
    lines
        .map(|(test, why)| (test.to_owned(), why.to_owned()))
        .collect()
}

/// `3 tests were skipped: why`, a line for each reason.
pub fn told(skipped: &BTreeMap<String, String>) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, usize> = BTreeMap::new();
    for why in skipped.values() {
        *by_reason.entry(why).or_default() += 1;
    }
    let lines = by_reason.into_iter().map(|(why, count)| match count {
        1 => format!("1 test was skipped: {why}"),
        _ => format!("{count} tests were skipped: {why}"),
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_counted_once_and_told_by_their_reason() {
        let skipped = by_test(
            "cluster::jobs::one\tno root\ndeploy::chart::two\tno helm\n\
             cluster::jobs::three\tno root\ncluster::jobs::one\tno root\n",
        );
        assert_eq!(skipped.len(), 3);
        assert_eq!(
            told(&skipped),
            [
                "1 test was skipped: no helm",
                "2 tests were skipped: no root"
            ]
        );
    }

    #[test]
    fn the_notes_of_a_run_are_gone_with_it() {
        let notes = Notes::begin().unwrap();
        let file = notes.file().to_owned();
        assert!(notes.read().unwrap().is_empty());
        drop(notes);
        assert!(!file.exists());
    }
}
