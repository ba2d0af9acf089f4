//! The range and the form of single values.

use serde_json::{Value, json};

use crate::{job, problems, refused, service, with};

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
        (
            json!("4Mi"),
            "must be a whole number of bytes, such as 65536, but is a string",
        ),
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
        "spec.output.uri: \"ftp://host/x\" is not accepted; Folder to write to: `s3://",
    );
    let object = with(job(), "/spec/input/uris/0", json!("https://host/x"));
    refused(
        &object,
        "spec.input.uris[0]: \"https://host/x\" is not accepted; Files to read: `s3://",
    );
}

#[test]
fn a_number_where_a_string_belongs_is_told_to_be_quoted() {
    let remote = json!({
        "baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m",
        "pricing": {"inputPerMillionTokens": 0.15},
    });
    let service = with(service(), "/spec", json!({"remote": remote}));
    refused(
        &service,
        "spec.remote.pricing.inputPerMillionTokens: must be a string, but is a number with a fraction; \
         write it in quotes: \"0.15\"",
    );
}

#[test]
fn a_row_that_is_no_text_is_not_repeated() {
    let problems = problems(&with(job(), "/spec/input", json!({"inline": [4111]})));
    let expected = "spec.input.inline[0]: must be a string, but is a number; write it in quotes";
    assert!(problems[0].starts_with(expected), "{problems:?}");
    assert!(!problems.concat().contains("4111"), "{problems:?}");
}

#[test]
fn a_uri_that_may_hold_a_secret_is_not_repeated() {
    for uri in [
        "ftp://host/x?token=hunter2",
        "ftp://host/x#hunter2",
        "ftp://host/%68unter2",
    ] {
        let problems = problems(&with(job(), "/spec/output/uri", json!(uri)));
        let text = problems.join("\n");
        assert!(text.contains("has not the expected form"), "{text}");
        assert!(!text.contains("unter2"), "{text}");
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
