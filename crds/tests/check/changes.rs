//! What of a manifest may be changed once it is there.

use millrace_crds::check::check_update;
use millrace_crds::manifest::Kind;
use serde_json::{Value, json};

use crate::{job, with};

#[test]
fn what_decides_the_results_cannot_be_changed() {
    for (pointer, value, field) in [
        ("/spec/serviceRef/name", json!("other"), "serviceRef"),
        ("/spec/input/uris", json!(["other.jsonl"]), "input"),
        ("/spec/output/uri", json!("elsewhere"), "output"),
        (
            "/spec/steps",
            json!([{"name": "a", "model": "minilm"}]),
            "steps",
        ),
        ("/spec/dedup", json!({}), "dedup"),
        ("/spec/sharding", json!({"targetBytes": 65_536}), "sharding"),
    ] {
        let problems = check_update(Kind::BatchJob, &job(), &with(job(), pointer, value));
        let problems = problems.unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert_eq!(
            problems[0].to_string(),
            format!("spec: {field} cannot be changed; create a new BatchJob instead")
        );
    }
}

/// A job that brings a service with this spec.
fn bringing(template: Value) -> Value {
    let mut job = with(job(), "/spec/serviceTemplate", template);
    job["spec"].as_object_mut().unwrap().remove("serviceRef");
    job
}

fn runtime() -> Value {
    json!({"runtime": {
        "image": "ghcr.io/acme/server:1", "port": 8000, "protocol": "TEI",
        "models": [{"name": "bge", "task": "Embedding"}],
    }})
}

fn remote() -> Value {
    json!({"remote": {"baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m"}})
}

#[test]
fn what_answers_the_rows_of_a_job_cannot_be_changed_where_the_job_brings_it() {
    for (template, pointer, value, said) in [
        (
            runtime(),
            "/runtime/image",
            json!("ghcr.io/acme/server:2"),
            "serviceTemplate.runtime",
        ),
        (
            runtime(),
            "/runtime/args",
            json!(["--model=other"]),
            "serviceTemplate.runtime",
        ),
        (
            remote(),
            "/remote/baseUrl",
            json!("https://api.example.com/v2"),
            "baseUrl, api and model of serviceTemplate.remote",
        ),
        (
            remote(),
            "/remote/api",
            json!("Responses"),
            "baseUrl, api and model of serviceTemplate.remote",
        ),
        (
            remote(),
            "/remote/model",
            json!("other"),
            "baseUrl, api and model of serviceTemplate.remote",
        ),
    ] {
        let changed = bringing(with(template.clone(), pointer, value));
        let problems = check_update(Kind::BatchJob, &bringing(template), &changed);
        let problems = problems.expect_err(pointer);
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert_eq!(
            problems[0].to_string(),
            format!("spec: {said} cannot be changed; create a new BatchJob instead")
        );
    }
    let other = check_update(Kind::BatchJob, &bringing(runtime()), &bringing(remote()));
    assert_eq!(other.unwrap_err().len(), 2, "neither may come or go");
    for (pointer, value) in [
        ("/remote/limits", json!({"requestsPerMinute": 10})),
        ("/remote/rowsPerCall", json!(8)),
    ] {
        let changed = bringing(with(remote(), pointer, value));
        assert!(check_update(Kind::BatchJob, &bringing(remote()), &changed).is_ok());
    }
}

#[test]
fn what_does_not_decide_the_results_can_be_changed() {
    let object = with(job(), "/spec/retry", json!({"maxAttempts": 9}));
    assert!(check_update(Kind::BatchJob, &job(), &object).is_ok());
    // Writing out a default changes nothing.
    for (pointer, value) in [
        ("/spec/output/compression", json!("None")),
        ("/spec/sharding", json!({"targetBytes": 4 << 20})),
    ] {
        let object = with(job(), pointer, value);
        assert!(check_update(Kind::BatchJob, &job(), &object).is_ok());
    }
}
