//! What the check refuses, and how it says so.

mod results;
mod routes;
mod rows;
mod runtime;
mod template;

use millrace_crds::check::{check, check_update};
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
fn numbers_out_of_range_are_refused_with_the_bound() {
    for (value, expected) in [
        (json!(0), "0 is too small; the least is 1024"),
        (json!(-1), "-1 is too small; the least is 1024"),
        (
            json!(2_147_483_648_u32),
            "2147483648 is too large; the most is 1073741824",
        ),
        (json!(1e300), "1e+300 is too large"),
        (
            json!(1024.5),
            "must be a whole number, but is a number with a fraction",
        ),
        (json!("4Mi"), "must be a whole number, but is a string"),
    ] {
        let object = with(job(), "/spec/sharding", json!({"targetBytes": value}));
        refused(&object, &format!("spec.sharding.targetBytes: {expected}"));
    }
    for attempts in [json!(0), json!(-3), json!(2_147_483_648_u32)] {
        let object = with(job(), "/spec/retry", json!({"maxAttempts": attempts}));
        refused(&object, "spec.retry.maxAttempts: ");
    }
    let near = json!({"near": {"threshold": 0.4}});
    refused(
        &with(job(), "/spec/dedup", near),
        "spec.dedup.near.threshold: 0.4 is too small; the least is 0.5",
    );
    for near in [
        json!({"method": "Embedding"}),
        json!({"method": "Embedding", "from": "vectors"}),
        json!({"method": "Embedding", "step": "minilm"}),
        json!({"from": "vectors", "step": "minilm"}),
        json!({"step": "minilm"}),
    ] {
        refused(
            &with(job(), "/spec/dedup", json!({"near": near})),
            "spec.dedup.near: method Embedding needs from, the output of an earlier job, and step, the name \
             of its embedding step; without it remove both",
        );
    }
    let five = json!(["a", "b", "c", "d", "e"]);
    refused(
        &with(job(), "/spec/input/order", five),
        "spec.input.order: ",
    );
    let object = with(job(), "/spec/backoffLimitPerIndex", json!(-1));
    refused(
        &object,
        "spec.backoffLimitPerIndex: -1 is too small; the least is 0",
    );
    let object = with(job(), "/spec/maxFailedIndexes", json!(-1));
    refused(
        &object,
        "spec.maxFailedIndexes: -1 is too small; the least is 0",
    );
    let object = with(job(), "/spec/managedBy", json!("somebody"));
    refused(&object, "spec.managedBy: ");
    let object = with(service(), "/spec/models/0/maxLength", json!(0));
    refused(
        &object,
        "spec.models[0].maxLength: 0 is too small; the least is 3",
    );
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

/// How rows are compared by the vectors of an output.
fn near(from: &str) -> Value {
    json!({"method": "Embedding", "from": from, "step": "embed"})
}

#[test]
fn credentials_in_a_uri_are_refused_and_never_repeated() {
    let fine = with(job(), "/spec/dedup", json!({"near": near("s3://bucket/x")}));
    assert_eq!(problems(&fine), Vec::<String>::new());
    for uri in [
        "s3://AKIAKEY:hunter2@bucket/x",
        "https://user:hunter2@host/x",
        "s3://AKIAKEY:hun/ter2@bucket/x",
        "hf://hunter2@acme/minilm",
    ] {
        let manifests = [
            with(job(), "/spec/input/uris/0", json!(uri)),
            with(job(), "/spec/output/uri", json!(uri)),
            with(job(), "/spec/incremental", json!({"from": uri})),
            with(job(), "/spec/dedup", json!({"near": near(uri)})),
            with(service(), "/spec/models/0/source/uri", json!(uri)),
        ];
        for object in manifests {
            let problems = problems(&object);
            assert!(!problems.is_empty(), "{uri} was let through");
            let text = problems.join("\n");
            for secret in ["hunter2", "hun/ter2", "AKIAKEY"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }
    let object = with(
        job(),
        "/spec/output/uri",
        json!("s3://user:hunter2@bucket/x"),
    );
    let text = problems(&object).join("\n");
    assert!(
        text.contains("spec.output: a URI cannot carry credentials"),
        "{text}"
    );
}

#[test]
fn a_store_that_is_not_known_is_refused_with_those_that_are() {
    let object = with(job(), "/spec/output/uri", json!("ftp://host/x"));
    refused(
        &object,
        "spec.output.uri: has not the expected form. Folder to write to: `s3://",
    );
    let object = with(job(), "/spec/input/uris/0", json!("https://host/x"));
    refused(
        &object,
        "spec.input.uris[0]: has not the expected form. Files to read: `s3://",
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
fn an_unknown_enum_value_lists_the_known_ones() {
    let object = with(service(), "/spec/models/0/task", json!("embeddings"));
    refused(
        &object,
        "spec.models[0].task: \"embeddings\" is not allowed; did you mean Embedding? Allowed are \
         Embedding, SequenceClassification, TokenClassification, TorchScript",
    );
    let object = with(job(), "/spec/input/format", json!("Avro"));
    refused(
        &object,
        "spec.input.format: \"Avro\" is not allowed; allowed are Jsonl, Csv, Parquet",
    );
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
fn names_are_kubernetes_names() {
    for name in ["Reviews", "a_b", "-a", "a..b", ""] {
        refused(
            &with(job(), "/metadata/name", json!(name)),
            "metadata.name: ",
        );
    }
    let longest = "a".repeat(253);
    assert_eq!(
        problems(&with(job(), "/metadata/name", json!(longest))),
        Vec::<String>::new()
    );
    refused(
        &with(job(), "/metadata/name", json!("a".repeat(254))),
        "metadata.name: is too long",
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
fn waits_are_durations_in_order() {
    let retry = |initial: &str, max: &str| {
        with(
            job(),
            "/spec/retry",
            json!({"initialBackoff": initial, "maxBackoff": max}),
        )
    };
    assert_eq!(problems(&retry("1s", "1m30s")), Vec::<String>::new());
    for (initial, max) in [("10s", "1s"), ("0s", "1s")] {
        refused(
            &retry(initial, max),
            "spec.retry: maxBackoff must be at least initialBackoff",
        );
    }
    refused(
        &retry("5", "10s"),
        "spec.retry.initialBackoff: has not the expected form",
    );
    refused(
        &retry("1s", "61m"),
        "spec.retry: maxBackoff must be at least initialBackoff and at",
    );
    assert!(!problems(&retry("-1s", "10s")).is_empty());
    let object = with(service(), "/spec/batching", json!({"maxWait": "99999999h"}));
    refused(&object, "spec.batching.maxWait: has not the expected form");
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
    let object = with(job(), "/spec/output/compression", json!("None"));
    assert!(check_update(Kind::BatchJob, &job(), &object).is_ok());
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
