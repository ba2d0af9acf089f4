//! What a job and its service make together.

use serde::de::DeserializeOwned;

use super::*;

/// An object of this API.
pub fn manifest<K: DeserializeOwned>(kind: &str, name: &str, spec: serde_json::Value) -> K {
    let manifest = serde_json::json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(manifest).unwrap()
}

fn manifests(job_spec: serde_json::Value) -> (BatchJob, InferenceService) {
    let models = serde_json::json!([
        {"name": "embed", "task": "Embedding", "source": {"uri": "hf://a/b"}},
        {"name": "mood", "task": "SequenceClassification", "source": {"uri": "hf://a/c"}},
    ]);
    let service = serde_json::json!({"models": models});
    (
        manifest("BatchJob", "job", job_spec),
        manifest("InferenceService", "service", service),
    )
}

/// Checks a job of these steps with a service.
pub fn check_steps(
    steps: serde_json::Value,
    service: serde_json::Value,
) -> Result<CheckedJob, JobError> {
    let job = serde_json::json!({
        "serviceRef": {"name": "service"}, "steps": steps,
        "input": {"uris": ["a.jsonl"]}, "output": {"uri": "out"},
    });
    check(
        &manifest("BatchJob", "job", job),
        &manifest("InferenceService", "service", service),
        Path::new("/"),
    )
}

/// Checks a job, changed by `spec`, with a server that the user brings, changed by `service`.
pub fn check_service_spec(spec: serde_json::Value, service: serde_json::Value) -> CheckedJob {
    let patched = |mut object: serde_json::Value, patch: serde_json::Value| {
        for (key, value) in patch.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    };
    let job = serde_json::json!({
        "serviceRef": {"name": "service"},
        "input": {"uris": ["a.jsonl"]}, "output": {"uri": "out"},
    });
    let runtime = serde_json::json!({
        "image": "tei:1", "port": 80, "protocol": "TEI",
        "models": [{"name": "bge", "task": "Embedding"}],
    });
    let service = serde_json::json!({"runtime": patched(runtime, service)});
    check(
        &manifest("BatchJob", "job", patched(job, spec)),
        &manifest("InferenceService", "service", service),
        Path::new("/"),
    )
    .unwrap()
}

fn check_spec(patch: serde_json::Value) -> Result<CheckedJob, JobError> {
    let mut spec = serde_json::json!({
        "serviceRef": {"name": "service"},
        "input": {"uris": ["data/*.jsonl"]},
        "output": {"uri": "../out/"},
    });
    for (key, value) in patch.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let (job, service) = manifests(spec);
    check(&job, &service, Path::new("/jobs/here"))
}

#[test]
fn relative_paths_are_taken_from_the_manifests_folder() {
    let job = check_spec(serde_json::json!({})).unwrap();
    assert_eq!(job.input.uris, ["file:///jobs/here/data/*.jsonl"]);
    assert_eq!(job.output.uri, "file:///jobs/out");
}

#[test]
fn without_steps_every_model_of_the_service_is_one() {
    let job = check_spec(serde_json::json!({})).unwrap();
    let steps: Vec<_> = job.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["embed", "mood"]);
}

#[test]
fn a_step_with_an_unknown_model_is_refused_with_what_is_known() {
    let error = check_spec(serde_json::json!({"steps": [{"name": "a", "model": "nope"}]}));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("spec.steps[0].model"), "{message}");
    assert!(message.contains("embed, mood"), "{message}");
}

#[test]
fn a_service_of_another_name_is_refused() {
    let error = check_spec(serde_json::json!({"serviceRef": {"name": "other"}}));
    assert!(matches!(error, Err(JobError::OtherService { .. })));
}

#[test]
fn only_what_decides_a_result_line_changes_the_spec_hash() {
    let hash = |patch| check_spec(patch).unwrap().spec_sha256;
    let plain = hash(serde_json::json!({}));
    assert_eq!(
        plain,
        hash(serde_json::json!({"output": {"uri": "elsewhere", "merge": true}}))
    );
    assert_eq!(
        plain,
        hash(serde_json::json!({"sharding": {"targetBytes": 2048}}))
    );
    assert_eq!(
        plain,
        hash(serde_json::json!({"retry": {"maxAttempts": 9}}))
    );
    assert_ne!(
        plain,
        hash(serde_json::json!({"output": {"uri": "../out", "join": ["a"]}}))
    );
    assert_ne!(
        plain,
        hash(serde_json::json!({"steps": [{"name": "e", "model": "embed"}]}))
    );
}

#[test]
fn only_what_decides_an_answer_changes_the_answers_hash() {
    let hash = |patch| check_spec(patch).unwrap().answers_sha256;
    let plain = hash(serde_json::json!({}));
    for same in [
        serde_json::json!({"input": {"uris": ["other.csv"], "textField": "body", "idField": "id"}}),
        serde_json::json!({"output": {"uri": "../out", "join": ["a"], "compression": "Zstd"}}),
        serde_json::json!({"incremental": {"from": "../earlier"}}),
    ] {
        assert_eq!(plain, hash(same));
    }
    let other = serde_json::json!({"steps": [{"name": "e", "model": "embed"}]});
    assert_ne!(plain, hash(other));
}

#[test]
fn an_order_that_cannot_be_used_is_refused_by_the_index_of_its_expression() {
    let order = |order: serde_json::Value| {
        check_spec(serde_json::json!({"input": {"uris": ["a.jsonl"], "order": order}}))
    };
    let job = order(serde_json::json!(["tier == 'gold'", "stars > 3"])).unwrap();
    assert_eq!(job.input.order.map(|order| order.classes()), Some(3));
    let refused = order(serde_json::json!(["tier == 'gold'", "stars >"])).unwrap_err();
    let message = refused.to_string();
    assert!(message.starts_with("spec.input.order[1]: "), "{message}");
}
