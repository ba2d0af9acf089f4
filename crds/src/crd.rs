//! The CustomResourceDefinitions of this API, as an API server takes them.
//!
//! What is generated here is what crdgen writes and what [`crate::check`] checks against, so the
//! lint command and the API server read the same schema.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::manifest::Kind;

/// What counts as the generation that was seen of an object before the operator saw it; no object has it.
const UNSEEN: i64 = -1;

/// The CustomResourceDefinition of a kind, as JSON.
pub fn definition(kind: Kind) -> Value {
    let definition = match kind {
        Kind::BatchJob => crate::BatchJob::crd(),
        Kind::InferenceService => crate::InferenceService::crd(),
    };
    let mut definition = serde_json::to_value(definition).expect("a CRD has a JSON form");
    tidy(&mut definition);
    mark_unseen(&mut definition);
    definition
}

/// Gives an object that the operator has not seen a status that says so. Without any, tools that wait for
/// objects by the rules of kstatus, such as `helm --wait`, take it for ready.
fn mark_unseen(definition: &mut Value) {
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["status"]["default"] = json!({"observedGeneration": UNSEEN});
}

/// The OpenAPI v3 schema of a kind's objects: a structural schema without `$ref`.
pub fn schema(kind: Kind) -> Value {
    definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// Where the definitions are written, relative to this crate: for people, and for the chart, which
/// can hold only what lies inside it.
pub const FOLDERS: [&str; 2] = ["generated", "../charts/millrace/files/crds"];

/// File name below each of [`FOLDERS`] of a kind's definition.
pub fn file_name(kind: Kind) -> String {
    format!("{}.yaml", kind.plural())
}

/// The definition of a kind in the form in which crdgen writes it.
pub fn yaml(kind: Kind) -> String {
    let body = serde_saphyr::to_string(&definition(kind)).expect("a CRD has a YAML form");
    format!(
        "# Generated from crds/src by `cargo run -p millrace-crds --bin crdgen`; do not edit.\n{body}"
    )
}

/// Takes out what only Rust knows. The formats of unsigned integers are unknown to an API server,
/// which warns of them, and the bounds beside them say the same; a bound that is a whole number
/// reads as one.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let unsigned = map
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.starts_with("uint"));
            if unsigned {
                map.remove("format");
            }
            for bound in ["minimum", "maximum"] {
                if let Some(number) = map.get(bound).and_then(Value::as_f64)
                    && number.fract() == 0.0
                {
                    map.insert(bound.to_owned(), (number as i64).into());
                }
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
