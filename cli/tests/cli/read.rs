//! `millrace results` and `millrace errors`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{Ended, INPUT, OutputFolder, command, error, millrace, result};

#[test]
fn results_come_in_input_order_while_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let output = OutputFolder::planned(folder.path(), 4);
    output.commit(2, &[result(200), result(210)], &[], true);
    output.commit(
        0,
        &[result(0), result(10)],
        &[error(20, "empty_text")],
        false,
    );
    let ended = millrace(&["results", output.path()]).expect_code(0);
    let expected = [0, 10, 200, 210].map(result);
    assert_eq!(ended.lines(), expected);
    assert!(
        ended
            .stderr
            .contains("not finished: this is what 2 committed shards hold")
    );
}

#[test]
fn an_output_may_be_named_by_path_or_uri() {
    let folder = tempfile::tempdir().unwrap();
    let output = OutputFolder::planned(folder.path(), 1);
    output.commit(0, &[result(0)], &[], false);
    let by_uri = millrace(&["results", &format!("file://{}", output.path())]).expect_code(0);
    let by_path = command(&["results", "."])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(by_uri.stdout, Ended::from(by_path).expect_code(0).stdout);
}

#[test]
fn no_more_lines_than_the_limit_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let output = OutputFolder::planned(folder.path(), 2);
    output.commit(0, &[result(0), result(10)], &[], false);
    output.commit(1, &[result(100)], &[], false);
    for (limit, expected) in [("0", 0), ("1", 1), ("3", 3), ("9", 3)] {
        let ended = millrace(&["results", output.path(), "--limit", limit]).expect_code(0);
        assert_eq!(ended.lines().len(), expected);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let output = OutputFolder::planned(folder.path(), 1);
    // Far more than a pipe holds, so that the program is still writing when its reader leaves.
    let lines: Vec<String> = (0..20_000).map(result).collect();
    output.commit(0, &lines, &[], true);
    let mut child = command(&["results", output.path()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert_eq!(first.trim_end(), result(0));
    let ended = Ended::from(child.wait_with_output().unwrap()).expect_code(0);
    assert!(
        !ended.stderr.contains("panic") && !ended.stderr.contains("rror"),
        "{ended:?}"
    );
}

#[test]
fn rows_are_followed_from_before_the_first_to_the_end_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let mut child = command(&["results", path, "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("waiting for rows in"), "{line}");
    let output = OutputFolder::planned(folder.path(), 3);
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || stdout.next().map(Result::unwrap);
    output.commit(2, &[result(200), result(210)], &[], true);
    assert_eq!(next(), Some(result(200)));
    assert_eq!(next(), Some(result(210)));
    output.commit(0, &[result(0)], &[], false);
    assert_eq!(next(), Some(result(0)));
    output.commit(1, &[], &[error(100, "empty_text")], false);
    output.finish();
    assert_eq!(next(), None, "nothing is printed twice");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn errors_are_a_table_with_a_sum() {
    let folder = tempfile::tempdir().unwrap();
    let output = OutputFolder::planned(folder.path(), 2);
    output.commit(1, &[], &[error(100, "invalid_json")], false);
    output.commit(
        0,
        &[],
        &[error(0, "empty_text"), error(9, "invalid_json")],
        false,
    );
    let ended = millrace(&["errors", output.path()]).expect_code(0);
    let expected = [
        format!("empty_text       {INPUT}@0 (id \"r0\")  said of empty_text"),
        format!("invalid_json     {INPUT}@9 (id \"r9\")  said of invalid_json"),
        format!("invalid_json     {INPUT}@100 (id \"r100\")  said of invalid_json"),
    ];
    assert_eq!(ended.lines(), expected);
    assert!(
        ended
            .stderr
            .ends_with("3 errors: 1 empty_text, 2 invalid_json\n"),
        "{ended:?}"
    );
}

#[test]
fn errors_as_json_are_the_lines_of_the_error_files() {
    let folder = tempfile::tempdir().unwrap();
    let output = OutputFolder::planned(folder.path(), 1);
    output.commit(0, &[], &[error(0, "empty_text")], false);
    let ended = millrace(&["errors", output.path(), "-o", "json"]).expect_code(0);
    assert_eq!(ended.lines(), [error(0, "empty_text")]);
}

#[test]
fn a_folder_that_is_no_output_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["results", "errors"] {
        let ended = millrace(&[command, folder.path().to_str().unwrap()]).expect_code(1);
        assert_eq!(ended.stdout, "");
        assert!(
            ended.stderr.contains("it is not the output of a BatchJob"),
            "{ended:?}"
        );
        let folder = folder.path().canonicalize().unwrap();
        let named = format!("error: {} holds neither", folder.display());
        assert!(ended.stderr.starts_with(&named), "{ended:?}");
    }
}
