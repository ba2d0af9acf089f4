//! Tests that cannot run where they are. libtest knows no end beside passed and failed and keeps what
//! passing tests print, so a test that is skipped passes, and notes it where whoever runs it asks.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Names the file that lists the skipped tests, a line each: the test, a tab, and why.
pub const SKIPPED_TESTS: &str = "MILLRACE_SKIPPED_TESTS";

/// Notes that the test of this thread does not run, and why.
pub fn skip(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(file) = std::env::var_os(SKIPPED_TESTS) {
        let program = std::env::current_exe().unwrap_or_default();
        let thread = std::thread::current();
        let line = line(&program, thread.name().unwrap_or_default(), why);
        note(&PathBuf::from(file), &line);
    }
}

/// The line of a test, by its program and its thread, which libtest names like the test.
fn line(program: &Path, thread: &str, why: &str) -> String {
    let program = program.file_name().unwrap_or_default().to_string_lossy();
    // Cargo adds a hash to the names of test programs.
    let program = program.rsplit_once('-').map_or(&*program, |(name, _)| name);
    format!("{program}::{thread}\t{}\n", why.replace(['\t', '\n'], " "))
}

/// Adds a line. One write of few bytes to the end of a file is never mixed with another's.
fn note(file: &Path, line: &str) {
    let mut options = File::options();
    let opened = options.create(true).append(true).open(file);
    let noted = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    noted.unwrap_or_else(|error| panic!("{} cannot be written: {error}", file.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_a_line_with_its_program_and_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("skipped");
        let program = Path::new("/target/release/deps/cluster-0f3a");
        note(&file, &line(program, "jobs::a_job_ends", "no\nroot"));
        note(&file, &line(program, "faults::a_pod_dies", "no root"));
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            "cluster::jobs::a_job_ends\tno root\ncluster::faults::a_pod_dies\tno root\n"
        );
    }
}
