//! Services that bring a server of their own.

use serde_json::{Value, json};

use crate::{problems, refused, service, with};

/// A service whose server the user brings.
fn brought(protocol: &str, models: Value) -> Value {
    let runtime = json!({
        "image": "ghcr.io/acme/server:1", "port": 8000, "protocol": protocol, "models": models,
    });
    with(service(), "/spec", json!({"runtime": runtime}))
}

fn embedding() -> Value {
    json!({"name": "bge", "task": "Embedding", "servedName": "BAAI/bge-m3"})
}

#[test]
fn a_service_has_models_or_a_runtime_and_never_both() {
    for protocol in ["OpenAI", "TEI", "OIP"] {
        let object = brought(protocol, json!([embedding()]));
        assert_eq!(problems(&object), Vec::<String>::new());
        let models = service()["spec"]["models"].clone();
        let both = with(object, "/spec/models", models);
        refused(&both, "spec: give exactly one of models");
    }
    let neither = with(service(), "/spec", json!({"batching": {}}));
    refused(&neither, "spec: give exactly one of models");
}

#[test]
fn a_runtime_is_only_asked_what_its_protocol_can_answer() {
    let classifier = |labels: Option<Value>| {
        let mut model = json!({"name": "mood", "task": "SequenceClassification"});
        if let Some(labels) = labels {
            model["labels"] = labels;
        }
        model
    };
    let labels = || Some(json!(["bad", "good"]));
    for (protocol, models) in [
        ("OpenAI", json!([embedding(), classifier(None)])),
        ("TEI", json!([embedding(), classifier(None)])),
        ("TEI", json!([classifier(labels())])),
        ("OIP", json!([classifier(None)])),
        ("OIP", json!([with(embedding(), "/labels", json!(["a"]))])),
    ] {
        refused(&brought(protocol, models), "spec.runtime: ");
    }
    for (protocol, models) in [
        ("OpenAI", json!([embedding()])),
        ("TEI", json!([classifier(None)])),
        ("OIP", json!([embedding(), classifier(labels())])),
    ] {
        let problems = problems(&brought(protocol, models));
        assert_eq!(problems, Vec::<String>::new());
    }
}

#[test]
fn the_fields_of_a_runtime_are_bounded() {
    let object = || brought("OIP", json!([embedding()]));
    for (field, value) in [
        ("port", json!(0)),
        ("port", json!(65_536)),
        ("protocol", json!("Grpc")),
        ("readyPath", json!("health")),
        ("image", json!("two words")),
        ("models", json!([])),
        ("maxBatchSize", json!(0)),
    ] {
        let object = with(object(), &format!("/spec/runtime/{field}"), value);
        refused(&object, &format!("spec.runtime.{field}: "));
    }
    let twice = json!({"name": "HOME", "value": "/a"});
    let object = with(object(), "/spec/runtime/env", json!([twice, twice]));
    refused(&object, "spec.runtime.env[1]: has the same name");
}
