//! What tests of working need: a job over a few rows, and an inference-server that says what a test
//! wants it to say.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use millrace_leases::{LeaseOptions, LeaseStore, MemoryLeaseStore};
use millrace_protocol::chunk::Chunk;
use millrace_protocol::manifest::Manifest;
use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::{
    CHUNKS_PATH, ChunksOfText, ChunksReply, ChunksRequest, ModelReply, Prediction, ROWS_PATH,
    RowsReply, RowsRequest,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::client::{Client, Own, ServerAddress};
use super::progress::Progress;
use super::submit::{SubmitOptions, Submitter};
use super::{Answerer, Asker, ShardContext, Worker};
use crate::job::{self, CheckedJob, Retry};
use crate::plan;
use crate::run::{self, RunEnd, WorkOptions};
use crate::store::{Location, StoreOptions, Stores};

/// What the server says to one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Say {
    /// A vector for every text and model: its length in bytes.
    Vectors,
    /// These replies.
    Reply(RowsReply),
    /// This status.
    Status(u16),
    /// Nothing, ever.
    Nothing,
}

type Script = dyn Fn(&RowsRequest, usize) -> Say + Send + Sync;

#[derive(Clone)]
struct Served {
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<RowsRequest>>>,
    /// Of its only model, once it is known.
    digest: Arc<Mutex<Option<String>>>,
}

/// A server on a Unix socket.
pub(crate) struct FakeServer {
    folder: TempDir,
    served: Served,
    _serving: AbortOnDropHandle<std::io::Result<()>>,
}

impl FakeServer {
    /// Says to each request what `script` makes of it and of how many there were before.
    pub(crate) fn start(
        script: impl Fn(&RowsRequest, usize) -> Say + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let served = Served {
            script: Arc::new(script),
            asked: Arc::default(),
            digest: Arc::default(),
        };
        let router = Router::new()
            .route(ROWS_PATH, post(rows))
            .route(CHUNKS_PATH, post(chunks))
            .route("/ready", get(ready))
            .route("/info", get(info))
            .with_state(served.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            folder,
            served,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// One that answers a text with its length, but fails on those with "bad" in them until it is well.
    pub(crate) fn unwell_until(is_well: Arc<AtomicBool>) -> Self {
        Self::start(move |request, _| {
            let is_well = is_well.load(Ordering::Relaxed);
            let one = |text: &String| {
                let error = RowError::new(RowErrorCode::ModelFailed, "it is unwell");
                let said = match text.contains("bad") && !is_well {
                    true => ModelReply::Err(error),
                    false => ModelReply::Ok(Prediction::Embedding(vec![text.len() as f32])),
                };
                vec![said; request.models.len()]
            };
            Say::Reply(RowsReply {
                rows: request.texts.iter().map(one).collect(),
                tokens: request.texts.len() as u64,
            })
        })
    }

    /// Loads files with this digest for the model of [`job`].
    pub(crate) fn load(&self, digest: &str) {
        *self.served.digest.lock().unwrap() = Some(digest.to_owned());
    }

    pub(crate) fn client(&self) -> Client {
        Client::Own(Own::new(self.folder.path().join("socket")))
    }

    pub(crate) fn address(&self) -> ServerAddress {
        ServerAddress::Socket(self.folder.path().join("socket"))
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<RowsRequest> {
        self.served.asked.lock().unwrap().clone()
    }
}

/// Ready unless the script says 503 to everything.
async fn ready(State(served): State<Served>) -> StatusCode {
    let nothing = RowsRequest {
        models: Vec::new(),
        texts: Vec::new(),
    };
    match (served.script)(&nothing, 0) {
        Say::Status(503) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    }
}

async fn info(State(served): State<Served>) -> Json<Value> {
    let digest = served.digest.lock().unwrap().clone();
    let model = digest.map(|digest| json!({"name": "embed", "digest": digest}));
    Json(json!({"models": model.into_iter().collect::<Vec<_>>()}))
}

async fn rows(State(served): State<Served>, body: Bytes) -> Response {
    let request: RowsRequest = rmp_serde::from_slice(&body).unwrap();
    let before = {
        let mut asked = served.asked.lock().unwrap();
        asked.push(request.clone());
        asked.len() - 1
    };
    let reply = match (served.script)(&request, before) {
        Say::Vectors => vectors(&request),
        Say::Reply(reply) => reply,
        Say::Status(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        Say::Nothing => std::future::pending().await,
    };
    rmp_serde::to_vec_named(&reply).unwrap().into_response()
}

/// Says what it says to a request for the rows of these texts; a text is one chunk.
async fn chunks(State(served): State<Served>, body: Bytes) -> Response {
    let ChunksRequest {
        models,
        texts,
        limits: _,
    } = rmp_serde::from_slice(&body).unwrap();
    let request = RowsRequest { models, texts };
    if let Say::Status(status) = (served.script)(&request, 0) {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let whole = |text: &String| {
        let (start, end) = (0, text.len() as u32);
        ChunksOfText::Ok(vec![Chunk { start, end }])
    };
    let texts = request.texts.iter().map(whole).collect();
    let reply = ChunksReply { texts };
    rmp_serde::to_vec_named(&reply).unwrap().into_response()
}

fn vectors(request: &RowsRequest) -> RowsReply {
    let row = |text: &String| {
        let vector = Prediction::Embedding(vec![text.len() as f32]);
        vec![ModelReply::Ok(vector); request.models.len()]
    };
    RowsReply {
        rows: request.texts.iter().map(row).collect(),
        tokens: request.texts.len() as u64,
    }
}

/// A job over files in `folder`, one for each of these texts and so a shard for each. `more` is
/// merged into the job's spec.
pub(crate) fn job(folder: &Path, texts: &[&str], more: Value) -> CheckedJob {
    for (index, text) in texts.iter().enumerate() {
        let line = json!({"text": text}).to_string() + "\n";
        std::fs::write(folder.join(format!("rows-{index}.jsonl")), line).unwrap();
    }
    let models = json!({"models": [
        {"name": "embed", "task": "Embedding", "source": {"uri": "hf://a/b"}},
    ]});
    checked(folder, models, json!({"uris": ["rows-*.jsonl"]}), more)
}

/// A job over `rows.jsonl` in `folder` that asks an API. `remote` is merged into what the service says
/// of it, and `more` into the job's spec.
pub(crate) fn remote_job(folder: &Path, remote: Value, more: Value) -> CheckedJob {
    let mut api = json!({"baseUrl": "http://127.0.0.1:9/v1", "api": "Chat", "model": "m"});
    for (key, value) in remote.as_object().unwrap() {
        api[key] = value.clone();
    }
    checked(
        folder,
        json!({"remote": api}),
        json!({"uris": ["rows.jsonl"]}),
        more,
    )
}

fn checked(folder: &Path, service: Value, input: Value, more: Value) -> CheckedJob {
    let mut spec = json!({
        "serviceRef": {"name": "service"},
        "input": input,
        "output": {"uri": "out"},
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let manifest = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        })
    };
    let service = manifest("InferenceService", "service", service);
    let job = manifest("BatchJob", "job", spec);
    let (job, service) = (
        serde_json::from_value(job).unwrap(),
        serde_json::from_value(service).unwrap(),
    );
    job::check(&job, &service, folder).unwrap()
}

/// How a run is worked off beside `server`, with leases of its own.
pub(crate) fn options(server: &FakeServer) -> WorkOptions {
    let options = LeaseOptions::default();
    WorkOptions {
        server: server.address(),
        leases: Arc::new(MemoryLeaseStore::new(options)),
        lease_ttl: options.lease_ttl,
        progress: Arc::new(Progress::default()),
        stop: CancellationToken::new(),
    }
}

/// Brings a job's run to its end.
pub(crate) async fn drive(stores: &Stores, job: &CheckedJob, options: &WorkOptions) -> Manifest {
    let prepared = run::prepare(stores, job).await.unwrap();
    match run::drive(stores, job, prepared, options, None).await {
        Ok(RunEnd::Finished(manifest)) => *manifest,
        other => panic!("{other:?}"),
    }
}

/// How rows are submitted where a test does not care.
pub(crate) fn submit_options() -> SubmitOptions {
    SubmitOptions {
        retry: Retry {
            attempts_max: 3,
            backoff_initial: Duration::from_millis(1),
            backoff_max: Duration::from_millis(1),
        },
        chunks_in_flight_max: 4,
        server_patience: Duration::from_secs(30),
    }
}

/// A planned job, ready to be worked on.
pub(crate) struct Scene {
    pub(crate) folder: TempDir,
    pub(crate) context: ShardContext,
    pub(crate) leases: Arc<MemoryLeaseStore>,
}

impl Scene {
    /// Plans a job with one shard per text, each of which is delivered once. The output is on disk
    /// unless one is given.
    pub(crate) async fn plan(
        texts: &[&str],
        server: &FakeServer,
        output: Option<Location>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path(), texts, json!({}));
        let stores = Stores::new(StoreOptions::default());
        let plan = plan::draft(&stores, &job).await.unwrap();
        let shards: Vec<u32> = (0..plan.shards.len() as u32).collect();
        let leases = MemoryLeaseStore::new(LeaseOptions {
            deliveries_max: 1,
            ..LeaseOptions::default()
        });
        leases.push(&shards).await.unwrap();
        let output = output.unwrap_or_else(|| stores.open(&job.output.uri).unwrap());
        let submitter = Submitter::new(server.client(), job.steps.clone(), submit_options());
        let context = ShardContext {
            job,
            plan,
            stores,
            output,
            answerer: Answerer::One(Asker::Server(Box::new(submitter))),
            models: Default::default(),
            progress: Arc::new(Progress::default()),
            copies: Default::default(),
        };
        Self {
            folder,
            context,
            leases: Arc::new(leases),
        }
    }

    /// The worker, and what is left to look at.
    pub(crate) fn worker(self) -> (Worker, Arc<MemoryLeaseStore>, TempDir) {
        let Self {
            folder,
            context,
            leases,
        } = self;
        let lease_ttl = LeaseOptions::default().lease_ttl;
        let worker = Worker::new(Arc::new(context), leases.clone(), lease_ttl);
        (worker, leases, folder)
    }
}
