//! `millrace run` of a service that brings its own server.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Ended, JOB, SERVICE, command, millrace};

const RUNTIME: &str = "
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: sentiment}
spec:
  runtime:
    image: ghcr.io/acme/tei:1
    port: 3000
    protocol: TEI
    models: [{name: brought, task: Embedding, servedName: minilm}]
";

/// A folder with three rows, and a job whose service brings its server.
fn scene() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!("{RUNTIME}---{JOB}");
    std::fs::write(folder.path().join("job.yaml"), manifest).unwrap();
    let rows = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n";
    std::fs::write(folder.path().join("reviews.jsonl"), rows).unwrap();
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> Ended {
    let manifest = folder.join("job.yaml");
    let mut command = command(&["run", "-f", manifest.to_str().unwrap()]);
    command.args(arguments).output().unwrap().into()
}

/// The inference-server on a port of its own, killed on drop.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let service: PathBuf = folder.join("service-of-ours.yml");
        std::fs::write(&service, SERVICE).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let program = Path::new(env!("CARGO_BIN_EXE_millrace"));
        let program = program.with_file_name("millrace-inference-server");
        let child = Command::new(program)
            .arg("--service")
            .arg(&service)
            .args(["--listen", &address, "--fake-backend"])
            .env("MILLRACE_LOG", "error")
            .stdin(Stdio::null())
            .spawn();
        Self {
            child: child.unwrap(),
            url: format!("http://{address}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_server_of_ones_own_is_used_where_it_runs_already() {
    let folder = scene();
    let elsewhere = tempfile::tempdir().unwrap();
    let server = Server::start(elsewhere.path());
    let ended = run(folder.path(), &["--server-url", &server.url]).expect_code(0);
    assert!(ended.stdout.contains("3 succeeded, 0 failed"), "{ended:?}");
    let output = folder.path().join("out");
    let results = millrace(&["results", output.to_str().unwrap()]).expect_code(0);
    assert!(results.lines()[0].contains("\"brought\":["), "{results:?}");
    // Nothing is left to do, so no server is asked for.
    let ended = run(folder.path(), &[]).expect_code(0);
    assert!(ended.stdout.contains("nothing to do"), "{ended:?}");
}

#[test]
fn an_image_is_not_started_on_this_machine() {
    let folder = scene();
    let ended = run(folder.path(), &[]).expect_code(2);
    assert!(ended.stderr.contains("--server-url http://"), "{ended:?}");
    assert!(!folder.path().join("out").exists());
    let ended = run(folder.path(), &["--dry-run"]).expect_code(0);
    assert!(ended.stdout.contains("rows         3"), "{ended:?}");
    assert!(!ended.stdout.contains("tokens"), "nobody knows: {ended:?}");
}

#[test]
fn a_url_is_for_a_service_that_brings_its_server() {
    let folder = scene();
    let manifest = format!("{SERVICE}---{JOB}");
    std::fs::write(folder.path().join("job.yaml"), manifest).unwrap();
    let ended = run(folder.path(), &["--server-url", "http://127.0.0.1:1"]).expect_code(2);
    assert!(ended.stderr.contains("--server-url"), "{ended:?}");
    let ended = run(folder.path(), &["--server-url", "https://a/v1"]).expect_code(2);
    assert!(ended.stderr.contains("http://host:port"), "{ended:?}");
}
