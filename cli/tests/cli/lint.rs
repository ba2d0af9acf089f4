//! `millrace lint`.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Ended, JOB, SERVICE, command, manifest, millrace};

/// Lints the service and this job.
fn lint(job: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    millrace(&["lint", "-f", manifest(folder.path(), job).to_str().unwrap()])
}

#[test]
fn good_manifests_have_no_problems() {
    let ended = lint(JOB).expect_code(0);
    assert!(
        ended
            .stdout
            .ends_with(": 1 BatchJob, 1 InferenceService: no problems\n"),
        "{ended:?}"
    );
}

#[test]
fn every_problem_is_printed_with_file_document_and_field() {
    let job = JOB
        .replace("uris:", "urls:")
        .replace("uri: out", "uri: out, compression: Gzip");
    let ended = lint(&job).expect_code(1);
    let lines = ended.lines();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for (line, field) in lines
        .iter()
        .zip(["input.urls", "output.compression", "input"])
    {
        let expected = format!("job.yaml, document 2 (BatchJob reviews): spec.{field}: ");
        assert!(line.contains(&expected), "{line}");
    }
}

#[test]
fn a_step_whose_model_the_service_lacks_is_a_problem() {
    let job = format!("{JOB}  steps: [{{name: a, model: mini}}]\n");
    let ended = lint(&job).expect_code(1);
    let expected = "job.yaml, document 2 (BatchJob reviews): spec.steps[0].model: the service has no \
                    model \"mini\"; it has minilm\n";
    assert!(ended.stdout.ends_with(expected), "{ended:?}");
}

#[test]
fn a_service_that_is_not_among_those_of_the_manifests_is_noted_and_no_problem() {
    let ended = lint(&JOB.replace(
        "serviceRef: {name: sentiment}",
        "serviceRef: {name: sentimnet}",
    ));
    let ended = ended.expect_code(0);
    let lines = ended.lines();
    let expected = "job.yaml, document 2 (BatchJob reviews): InferenceService \"sentimnet\" is not among \
                    the manifests, which hold sentiment: it has to be in the cluster";
    assert!(
        lines[0].starts_with("note: ") && lines[0].ends_with(expected),
        "{ended:#?}"
    );
    assert_eq!(lines.len(), 2, "{ended:#?}");
}

#[test]
fn kinds_are_counted_as_they_are_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yaml");
    std::fs::write(&file, JOB).unwrap();
    let ended = millrace(&["lint", "-f", file.to_str().unwrap()]).expect_code(0);
    let expected = ": 1 BatchJob, 0 InferenceServices: no problems\n";
    assert!(ended.stdout.ends_with(expected), "{ended:?}");
}

#[test]
fn credentials_are_refused_and_never_printed() {
    let job = JOB.replace("uri: out", "uri: 's3://key:hunter2@bucket/out'");
    let ended = lint(&job).expect_code(1);
    assert!(
        ended.stdout.contains("a URI cannot carry credentials"),
        "{ended:?}"
    );
    assert!(
        !ended.stdout.contains("hunter2") && !ended.stderr.contains("hunter2"),
        "{ended:?}"
    );
}

#[test]
fn what_is_of_another_api_is_named_and_not_checked() {
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: keys}\n";
    let ended = lint(&format!("{JOB}{secret}")).expect_code(0);
    let lines = ended.lines();
    assert_eq!(lines.len(), 2, "{ended:?}");
    let expected = "job.yaml, document 3 (Secret keys): v1 is not of millrace: not checked";
    assert!(lines[0].ends_with(expected), "{ended:?}");
    assert!(
        lines[1].ends_with("1 BatchJob, 1 InferenceService: no problems"),
        "{ended:?}"
    );
    let ended = lint(&JOB.replace("kind: BatchJob", "kind: BachJob")).expect_code(1);
    assert!(ended.stdout.contains("is no kind of millrace"), "{ended:?}");
}

#[test]
fn a_folder_is_linted_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), SERVICE).unwrap();
    std::fs::write(
        folder.path().join("b.yaml"),
        JOB.replace("name: reviews", "name: Reviews"),
    )
    .unwrap();
    let ended = millrace(&["lint", "-f", folder.path().to_str().unwrap()]).expect_code(1);
    assert!(
        ended
            .stdout
            .contains("b.yaml, document 1 (BatchJob Reviews): metadata.name: ")
    );
}

#[test]
fn standard_input_is_linted_as_well() {
    let mut child = command(&["lint", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(JOB.replace("uri: out", "uri: 'ftp://a/b'").as_bytes())
        .unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap()).expect_code(1);
    let expected = "standard input, document 1 (BatchJob reviews): spec.output.uri: \
                    \"ftp://a/b\" is not accepted; ";
    assert!(ended.stdout.starts_with(expected), "{ended:?}");
}

#[test]
fn a_missing_file_is_wrong_usage() {
    let ended = millrace(&["lint", "-f", "/nowhere/job.yaml"]).expect_code(2);
    assert_eq!(
        ended.stderr,
        "error: /nowhere/job.yaml cannot be read: No such file or directory (os error 2)\n"
    );
}
