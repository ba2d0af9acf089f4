//! A job whose service brings its server, and a submitter of rows for it.

use std::path::Path;
use std::time::Duration;

use millrace_protocol::row::{RowError, RowErrorCode};
use millrace_protocol::wire::Prediction;
use millrace_worker::job::{self, CheckedJob, Retry};
use millrace_worker::work::client::{Client, ServerAddress};
use millrace_worker::work::submit::{Answered, SubmitOptions, Submitter};
use serde_json::{Value, json};

/// A service with this `spec` and a job over `rows.jsonl` in `folder`.
pub fn job(folder: &Path, spec: Value) -> CheckedJob {
    let manifest = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        })
    };
    let service = manifest("InferenceService", "service", spec);
    let job = json!({
        "serviceRef": {"name": "service"},
        "input": {"uris": ["rows.jsonl"]},
        "output": {"uri": "out"},
        "sharding": {"targetBytes": 4096},
    });
    let job = manifest("BatchJob", "job", job);
    let (job, service) = (
        serde_json::from_value(job).unwrap(),
        serde_json::from_value(service).unwrap(),
    );
    job::check(&job, &service, folder).unwrap()
}

/// `spec.runtime` of a server with one model.
pub fn runtime(protocol: &str, model: Value) -> Value {
    json!({
        "image": "acme/server:1", "port": 80, "protocol": protocol, "models": [model],
    })
}

pub fn embedding(served_name: &str) -> Value {
    json!({"name": "step", "task": "Embedding", "servedName": served_name})
}

pub fn classification(served_name: &str) -> Value {
    json!({"name": "step", "task": "SequenceClassification", "servedName": served_name})
}

/// A client of the server at `url`, as a service with this runtime describes it.
pub fn client(url: &str, runtime: &Value) -> Client {
    let job = job(Path::new("/"), json!({"runtime": runtime}));
    let address = ServerAddress::Url(url.parse().unwrap());
    Client::new(&address, &job).unwrap()
}

/// Submits rows by a client of [`client`].
pub fn submitter(client: Client) -> Submitter {
    patient_submitter(client, Duration::from_secs(60))
}

pub fn patient_submitter(client: Client, server_patience: Duration) -> Submitter {
    let steps = vec![job::Step {
        name: "step".to_owned(),
        model: "step".to_owned(),
        prompt: None,
    }];
    let options = SubmitOptions {
        retry: Retry {
            attempts_max: 2,
            backoff_initial: Duration::from_millis(1),
            backoff_max: Duration::from_millis(1),
        },
        chunks_in_flight_max: 8,
        server_patience,
    };
    Submitter::new(client, steps, options)
}

/// Texts of a few words, each of them different.
pub fn texts(count: usize) -> Vec<String> {
    let text = |index| format!("grain {index} water {}", "wheel ".repeat(index % 7));
    (0..count)
        .map(|index| text(index).trim().to_owned())
        .collect()
}

/// The one prediction of each row, or the code that it ended with.
pub fn brief(answered: &Answered) -> Vec<Result<&Prediction, RowErrorCode>> {
    let outcomes = answered.outcomes.iter().map(Result::as_ref);
    outcomes
        .map(|outcome: Result<&Vec<Prediction>, &RowError>| {
            outcome.map(one).map_err(|error| error.code)
        })
        .collect()
}

fn one(predictions: &Vec<Prediction>) -> &Prediction {
    match predictions.as_slice() {
        [prediction] => prediction,
        other => panic!("one step was asked: {other:?}"),
    }
}

/// Asserts that these rows failed, with this code, and that all others succeeded.
#[track_caller]
pub fn assert_only(answered: &Answered, failed: &[usize], code: RowErrorCode) {
    for (row, outcome) in brief(answered).into_iter().enumerate() {
        match failed.contains(&row) {
            true => assert_eq!(outcome.unwrap_err(), code, "row {row}"),
            false => assert!(outcome.is_ok(), "row {row}: {outcome:?}"),
        }
    }
}

/// Every message of a failed row.
pub fn messages(answered: &Answered) -> Vec<&str> {
    let outcomes = answered.outcomes.iter();
    outcomes
        .filter_map(|outcome| Some(outcome.as_ref().err()?.message.as_str()))
        .collect()
}
