//! What the commands for a cluster say where there is none.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::support::{Ended, JOB, command, manifest};

/// A kubeconfig whose API server nobody is.
fn unreachable(folder: &Path) -> (PathBuf, String) {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let server = format!("http://127.0.0.1:{port}");
    let kubeconfig = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
         contexts: [{{name: here, context: {{cluster: c, user: u, namespace: tenant}}}}]\n\
         users: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    (kubeconfig, server)
}

fn ask(folder: &Path, arguments: &[&str]) -> (Ended, String) {
    let (kubeconfig, server) = unreachable(folder);
    let mut command = command(arguments);
    command.env("KUBECONFIG", kubeconfig);
    (command.output().unwrap().into(), server)
}

#[test]
fn a_server_that_cannot_be_reached_is_named_with_the_way_to_another() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["list"][..],
        &["status", "embed"],
        &["logs", "embed"],
        &["status", "@latest"],
        &["top"],
        &["report", "embed"],
        &["suspend", "embed"],
        &["results", "batchjob/embed"],
    ] {
        let (ended, server) = ask(folder.path(), arguments);
        let ended = ended.expect_code(1);
        assert!(
            ended.stderr.contains(&server) && ended.stderr.contains("--context"),
            "{arguments:?}: {ended:#?}"
        );
        assert!(ended.stderr.contains("refused"), "{ended:#?}");
    }
}

#[test]
fn a_check_of_a_server_that_cannot_be_reached_fails_with_a_hint_and_asks_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (ended, server) = ask(folder.path(), &["check"]);
    let ended = ended.expect_code(1);
    let lines = ended.lines();
    assert_eq!(lines.len(), 2, "{ended:#?}");
    assert!(lines[0].starts_with("✗ API server"), "{ended:#?}");
    assert!(lines[1].contains(&server) && lines[1].contains("--context"));
}

#[test]
fn a_context_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (ended, _) = ask(folder.path(), &["list", "--context", "elsewhere"]);
    let ended = ended.expect_code(1);
    assert!(ended.stderr.contains("elsewhere"), "{ended:#?}");
}

#[test]
fn a_kubeconfig_that_is_not_there_is_named_with_the_way_to_another() {
    let mut command = command(&["list"]);
    for name in ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
        command.env_remove(name);
    }
    let ended = command
        .env("KUBECONFIG", "/nowhere/config")
        .output()
        .unwrap();
    let ended = Ended::from(ended).expect_code(1);
    let expected = "error: no cluster can be found: there is no /nowhere/config; name one with \
                    --kubeconfig and --context, or set KUBECONFIG\n";
    assert_eq!(ended.stderr, expected);
}

#[test]
fn manifests_are_refused_before_a_cluster_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = manifest(folder.path(), &JOB.replace("uris:", "urls:"));
    let (ended, _) = ask(folder.path(), &["submit", "-f", file.to_str().unwrap()]);
    let ended = ended.expect_code(2);
    assert!(ended.stderr.contains("spec.input.urls"), "{ended:#?}");
    let is_error = |line: &str| line.starts_with("error: ");
    assert_eq!(ended.stderr.lines().count(), 2, "{ended:#?}");
    assert!(ended.stderr.lines().all(is_error), "{ended:#?}");
}

#[test]
fn paths_of_this_machine_are_refused_before_a_cluster_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = manifest(folder.path(), JOB);
    let (ended, _) = ask(folder.path(), &["submit", "-f", file.to_str().unwrap()]);
    let ended = ended.expect_code(2);
    for field in ["spec.input.uris[0]", "spec.output.uri"] {
        assert!(ended.stderr.contains(field), "{ended:#?}");
    }
}
