//! What the check refuses, and how it says so.

mod changes;
mod results;
mod routes;
mod rows;
mod runtime;
mod template;
mod values;

use millrace_crds::check::check;
use millrace_crds::manifest::Kind;
use serde_json::{Value, json};

fn job() -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": "reviews"},
        "spec": {
            "serviceRef": {"name": "sentiment"},
            "input": {"uris": ["reviews.jsonl"]},
            "output": {"uri": "out"},
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "sentiment"},
        "spec": {"models": [
            {"name": "minilm", "task": "Embedding", "source": {"uri": "hf://acme/minilm"}},
        ]},
    })
}

/// The object with the value at a JSON pointer replaced; the last field may be new.
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match name.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[name] = value,
    }
    object
}

fn kind_of(object: &Value) -> Kind {
    Kind::ALL
        .into_iter()
        .find(|kind| object["kind"] == kind.as_str())
        .unwrap()
}

fn problems(object: &Value) -> Vec<String> {
    let problems = check(kind_of(object), object).err().unwrap_or_default();
    problems.iter().map(ToString::to_string).collect()
}

/// Exactly one problem, which begins with `expected`.
fn refused(object: &Value, expected: &str) {
    let problems = problems(object);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0].starts_with(expected),
        "{} instead of {expected}",
        problems[0]
    );
}

#[test]
fn the_smallest_manifests_pass() {
    assert_eq!(problems(&job()), Vec::<String>::new());
    assert_eq!(problems(&service()), Vec::<String>::new());
}

#[test]
fn an_unknown_field_is_refused_with_the_name_that_was_meant() {
    let object = with(job(), "/spec/input/urls", json!(["a"]));
    refused(
        &object,
        "spec.input.urls: unknown field; did you mean uris?",
    );
    let object = with(job(), "/spec/model", json!("a"));
    refused(
        &object,
        "spec.model: unknown field; known are activeDeadlineSeconds, backoffLimitPerIndex",
    );
    let object = with(job(), "/metadata/label", json!({}));
    refused(
        &object,
        "metadata.label: unknown field; did you mean labels?",
    );
    let object = with(service(), "/spec/models/0/maxlength", json!(10));
    refused(
        &object,
        "spec.models[0].maxlength: unknown field; did you mean maxLength?",
    );
    refused(&with(job(), "/extra", json!(1)), "extra: unknown field");
}

#[test]
fn a_misspelt_field_is_named_before_the_rule_that_misses_it() {
    let mut object = with(job(), "/spec/serviceref", json!({"name": "sentiment"}));
    object["spec"].as_object_mut().unwrap().remove("serviceRef");
    let problems = problems(&object);
    assert_eq!(problems.len(), 2, "{problems:#?}");
    let expected = "spec.serviceref: unknown field; did you mean serviceRef?";
    assert_eq!(problems[0], expected);
    assert!(problems[1].contains("give exactly one of"), "{problems:#?}");
}

#[test]
fn a_reference_into_another_namespace_cannot_be_expressed() {
    let mut service = service();
    let spec = service["spec"].as_object_mut().unwrap();
    spec.insert("secrets".to_owned(), json!([{"name": "s3"}]));
    let source = json!({"uri": "s3://bucket/minilm", "credentials": {"name": "s3"}});
    let service = with(service, "/spec/models/0/source", source);
    assert_eq!(problems(&service), Vec::<String>::new());
    for (object, reference) in [
        (&job(), "/spec/serviceRef"),
        (&service, "/spec/secrets/0"),
        (&service, "/spec/models/0/source/credentials"),
    ] {
        assert_stays_within(object, reference);
    }
}

/// Makes sure that the reference at a JSON pointer takes no namespace.
fn assert_stays_within(object: &Value, pointer: &str) {
    let namespace = format!("{pointer}/namespace");
    let text = problems(&with(object.clone(), &namespace, json!("other"))).join("\n");
    assert!(
        text.contains("namespace: unknown field"),
        "{pointer}: {text}"
    );
}

#[test]
fn a_text_input_has_no_fields() {
    for field in ["idField", "textField"] {
        let input = json!({"uris": ["a.txt"], "format": "Text", field: "x"});
        refused(
            &with(job(), "/spec/input", input),
            &format!("spec.input: {field} means nothing for format Text"),
        );
    }
    let input = json!({"uris": ["a.txt"], "format": "Text", "idField": null});
    assert_eq!(
        problems(&with(job(), "/spec/input", input)),
        Vec::<String>::new()
    );
}

#[test]
fn options_of_another_task_are_refused() {
    for (task, field, value) in [
        ("SequenceClassification", "pooling", json!("Mean")),
        ("TokenClassification", "normalize", json!(true)),
        ("Embedding", "activation", json!("Softmax")),
        ("Embedding", "labels", json!(["a"])),
    ] {
        let object = with(service(), "/spec/models/0/task", json!(task));
        let object = with(object, &format!("/spec/models/0/{field}"), value);
        refused(&object, &format!("spec.models[0]: {field} "));
    }
}

#[test]
fn a_missing_field_is_named_with_what_it_is_for() {
    let mut object = job();
    object["spec"].as_object_mut().unwrap().remove("output");
    refused(
        &object,
        "spec.output: is required. Where results, errors and the manifest are written.",
    );
    let mut object = job();
    object.as_object_mut().unwrap().remove("metadata");
    refused(&object, "metadata: is required");
    refused(
        &with(job(), "/metadata", json!({})),
        "metadata.name: is required",
    );
}

#[test]
fn two_entries_of_the_same_name_are_refused() {
    let step = json!({"name": "a", "model": "m"});
    let object = with(
        job(),
        "/spec/steps",
        json!([step, {"name": "b", "model": "m"}, step]),
    );
    refused(
        &object,
        "spec.steps[2]: has the same name as spec.steps[0]; name must be unique",
    );
    let model = service()["spec"]["models"][0].clone();
    refused(
        &with(service(), "/spec/models", json!([model, model])),
        "spec.models[1]: has the same name as spec.models[0]",
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let object = with(
        job(),
        "/spec/input",
        json!({"uris": [], "fromat": "Csv", "idField": 3}),
    );
    let object = with(object, "/spec/sharding", json!({"targetBytes": 1}));
    let problems = problems(&object);
    for path in [
        "input.uris",
        "input.fromat",
        "input.idField",
        "sharding.targetBytes",
    ] {
        let path = format!("spec.{path}: ");
        assert!(
            problems.iter().any(|problem| problem.starts_with(&path)),
            "{path} {problems:#?}"
        );
    }
}

#[test]
fn defaults_are_filled_in() {
    let checked = check(Kind::BatchJob, &job()).unwrap();
    let spec = &checked["spec"];
    assert_eq!(spec["sharding"]["targetBytes"], 4 << 20);
    assert_eq!(spec["retry"]["maxAttempts"], 3);
    assert_eq!(spec["retry"]["initialBackoff"], "200ms");
    assert_eq!(spec["output"]["compression"], "None");
    assert_eq!(spec["input"]["maxRowBytes"], 1 << 20);
    assert_eq!(spec["backoffLimitPerIndex"], 6);
    let checked = check(Kind::InferenceService, &service()).unwrap();
    assert_eq!(checked["spec"]["models"][0]["dtype"], "Auto");
    assert_eq!(checked["spec"]["batching"]["queue"]["maxItems"], 16_384);
}

#[test]
fn null_says_the_same_as_no_field() {
    let object = with(job(), "/spec/sharding", json!(null));
    let object = with(object, "/spec/steps", json!(null));
    let checked = check(Kind::BatchJob, &object).unwrap();
    assert_eq!(checked, check(Kind::BatchJob, &job()).unwrap());
    refused(
        &with(job(), "/spec/input", json!(null)),
        "spec.input: must be an object, but is null",
    );
}

#[test]
fn a_deeply_nested_value_is_refused_and_overflows_nothing() {
    let mut deep = json!(1);
    for _ in 0..120 {
        deep = json!([deep]);
    }
    refused(
        &with(job(), "/spec/input/idField", deep),
        "spec.input.idField: must be a string",
    );
}
