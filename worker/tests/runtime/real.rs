//! The inference-server itself, in a process of its own, asked as if it were somebody else's.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use millrace_e2e::process::{Process, binary};
use millrace_protocol::row::RowErrorCode;
use millrace_protocol::wire::RowsRequest;
use millrace_worker::work::client::{Client, ClientError, Own};
use millrace_worker::work::submit::Submitter;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::job::{
    assert_only, brief, classification, client, embedding, messages, runtime, submitter, texts,
};

const SERVICE: &str = "
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: real}
spec:
  models:
  - {name: embed, task: Embedding, source: {uri: hf://fake/embed}}
  - {name: mood, task: SequenceClassification, source: {uri: hf://fake/mood}}
";

/// The inference-server on a port of its own.
pub struct Real {
    process: Process,
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    fake_backend: String,
}

impl Real {
    pub fn start(fake_backend: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("service.yaml"), SERVICE).unwrap();
        // Free a moment ago; the server needs the same one when it is started again.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let process = process(&folder, port, &arguments, fake_backend);
        Self {
            process,
            folder,
            port,
            arguments,
            fake_backend: fake_backend.to_owned(),
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    fn start_again(&mut self) {
        self.process = process(&self.folder, self.port, &self.arguments, &self.fake_backend);
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A client that is told of the server as of somebody else's, once it is ready.
    pub async fn client(&self, protocol: &str, model: Value) -> Client {
        let client = client(&self.url(), &runtime(protocol, model));
        let ready = client.wait_ready(Duration::from_secs(60)).await;
        ready.unwrap_or_else(|error| panic!("{error}\n{}", self.process.log()));
        client
    }

    async fn submitter(&self, protocol: &str, model: Value) -> Submitter {
        submitter(self.client(protocol, model).await)
    }

    /// Requests to an endpoint that were answered with a status.
    fn requests(&self, endpoint: &str, status: u16) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (endpoint, status) = (
            format!("endpoint=\"{endpoint}\""),
            format!("status=\"{status}\""),
        );
        let counts = text.lines().filter(|line| {
            line.starts_with("millrace_request_total")
                && line.contains(&endpoint)
                && line.contains(&status)
        });
        counts
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }
}

fn process(folder: &TempDir, port: u16, arguments: &[String], fake_backend: &str) -> Process {
    let mut command = Command::new(binary("millrace-inference-server"));
    command
        .arg("--service")
        .arg(folder.path().join("service.yaml"))
        .arg("--uds")
        .arg(folder.path().join("socket"))
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--fake-backend", fake_backend])
        .args(arguments);
    Process::start(command, folder.path().join("server.log"))
}

#[tokio::test]
async fn a_foreign_server_answers_what_ours_answers_over_its_socket() {
    let server = Real::start("", &[]);
    // More than the server takes in an online request.
    let rows = texts(100);
    for (protocol, model, of_ours) in [
        ("OpenAI", embedding("embed"), "embed"),
        ("TEI", embedding("embed"), "embed"),
        ("TEI", classification("mood"), "mood"),
    ] {
        let submitter = server.submitter(protocol, model).await;
        let answered = submitter.submit(rows.clone()).await.unwrap();
        let request = RowsRequest {
            models: vec![of_ours.to_owned()],
            texts: rows.clone(),
        };
        let ours = Own::new(server.socket());
        let ours = Client::Own(ours).infer(&request).await.unwrap();
        for (row, (foreign, ours)) in brief(&answered).iter().zip(ours.rows).enumerate() {
            let millrace_protocol::wire::ModelReply::Ok(ours) = &ours[0] else {
                panic!("{ours:?}");
            };
            assert_eq!(foreign.as_ref(), Ok(&ours), "{protocol}, row {row}");
        }
    }
    assert!(server.requests("/v1/embeddings", 413) > 0, "it was halved");
}

#[tokio::test]
async fn a_batch_as_large_as_the_manifest_says_is_never_refused() {
    let server = Real::start("", &[]);
    let mut runtime = runtime("TEI", embedding("embed"));
    runtime["maxBatchSize"] = json!(32);
    let client = client(&server.url(), &runtime);
    client.wait_ready(Duration::from_secs(60)).await.unwrap();
    let answered = submitter(client).submit(texts(100)).await.unwrap();
    assert_only(&answered, &[], RowErrorCode::Refused);
    assert_eq!(server.requests("/embed", 413), 0);
    assert_eq!(server.requests("/embed", 200), 4);
}

#[tokio::test]
async fn a_full_server_is_asked_again_until_it_answers() {
    let arguments = ["--max-concurrent-requests", "1"];
    let server = Real::start("micros-per-token=1000", &arguments);
    let submitter = Arc::new(server.submitter("TEI", embedding("embed")).await);
    let chunks = (0..6).map(|_| {
        let submitter = submitter.clone();
        tokio::spawn(async move { submitter.submit(texts(16)).await })
    });
    for chunk in chunks.collect::<Vec<_>>() {
        let answered = chunk.await.unwrap().unwrap();
        assert_only(&answered, &[], RowErrorCode::Refused);
    }
    assert!(server.requests("/embed", 429) > 0, "it was full");
}

#[tokio::test]
async fn a_row_that_kills_the_server_is_found_alone() {
    let server = Real::start("crash-on=hemlock", &["--supervise"]);
    let mut rows = texts(20);
    rows[13] = "a hemlock row".to_owned();
    let submitter = server.submitter("OpenAI", embedding("embed")).await;
    let answered = submitter.submit(rows).await.unwrap();
    assert_only(&answered, &[13], RowErrorCode::ServerCrashed);
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_costs_no_row() {
    let mut server = Real::start("micros-per-token=10000", &[]);
    let submitter = Arc::new(server.submitter("TEI", embedding("embed")).await);
    let asking = {
        let submitter = submitter.clone();
        tokio::spawn(async move { submitter.submit(texts(30)).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.kill();
    assert!(!asking.is_finished(), "it was killed under the request");
    server.start_again();
    let answered = asking.await.unwrap().unwrap();
    assert_only(&answered, &[], RowErrorCode::Refused);
    // Nobody listens when this chunk is sent.
    server.kill();
    let asking = tokio::spawn(async move { submitter.submit(texts(3)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.start_again();
    let answered = asking.await.unwrap().unwrap();
    assert_only(&answered, &[], RowErrorCode::Refused);
}

#[tokio::test]
async fn a_row_that_is_too_long_fails_alone_and_is_not_repeated() {
    let server = Real::start("", &["--max-text-chars", "200"]);
    let mut rows = texts(20);
    rows[7] = "long ".repeat(100);
    for protocol in ["OpenAI", "TEI"] {
        let submitter = server.submitter(protocol, embedding("embed")).await;
        let answered = submitter.submit(rows.clone()).await.unwrap();
        assert_only(&answered, &[7], RowErrorCode::TextTooLong);
        assert!(!messages(&answered)[0].contains("long long"));
    }
}

#[tokio::test]
async fn a_row_that_the_model_fails_on_fails_alone() {
    let server = Real::start("fail-on=[fail],nan-on=[nan]", &[]);
    let mut rows = texts(20);
    rows[0] = "a [fail] row".to_owned();
    rows[19] = "a [nan] row".to_owned();
    for (protocol, model) in [
        ("OpenAI", embedding("embed")),
        ("TEI", classification("mood")),
    ] {
        let submitter = server.submitter(protocol, model).await;
        let answered = submitter.submit(rows.clone()).await.unwrap();
        assert_only(&answered, &[0, 19], RowErrorCode::ModelFailed);
    }
}

#[tokio::test]
async fn what_the_server_cannot_do_at_all_is_said_before_any_row() {
    let server = Real::start("", &[]);
    let fits = server.client("TEI", embedding("embed")).await;
    let models = fits.models().await.unwrap();
    assert_eq!((models[0].name.as_str(), models.len()), ("step", 1));
    // It says nothing of itself in the words of these protocols.
    assert_eq!(models[0].digest, "acme/server:1");
    for (protocol, model) in [
        ("TEI", embedding("mood")),
        ("TEI", classification("embed")),
        ("OpenAI", embedding("mood")),
        ("OIP", embedding("embed")),
    ] {
        let client = server.client_of(protocol, &model).await;
        let error = client.models().await.unwrap_err();
        let is_unsuited = matches!(error, ClientError::Unsuited { .. });
        assert!(is_unsuited, "{protocol} {model}: {error}");
    }
    let client = server.client("OpenAI", embedding("nope")).await;
    let error = client.models().await.unwrap_err();
    let is_refused = matches!(error, ClientError::Refused { status: 404, .. });
    assert!(is_refused, "{error}");
}

impl Real {
    /// As [`Real::client`], whatever path the protocol has for being ready.
    async fn client_of(&self, protocol: &str, model: &Value) -> Client {
        let mut runtime = runtime(protocol, model.clone());
        runtime["readyPath"] = json!("/ready");
        let client = client(&self.url(), &runtime);
        client.wait_ready(Duration::from_secs(60)).await.unwrap();
        client
    }
}
