//! Structure and bounds: types, required and unknown fields, ranges, patterns, unique keys.

use jsonschema::error::ValidationErrorKind;
use serde_json::{Value, json};

use super::describe;
use super::{Problem, path};

/// What the check of the structure found.
pub(super) struct Findings {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Whether every value has a shape that rules can be evaluated on.
    pub well_formed: bool,
}

/// Checks `object` against the strict form of `schema`.
pub(super) fn check(schema: &Value, object: &Value) -> Findings {
    let strict = strict(schema);
    let validator = jsonschema::draft7::new(&strict).expect("a generated schema is a schema");
    let mut problems = Vec::new();
    let mut well_formed = true;
    for error in validator.iter_errors(object) {
        // These are the errors after which an API server skips the rules as well.
        well_formed &= !matches!(
            error.kind(),
            ValidationErrorKind::Type { .. }
                | ValidationErrorKind::Required { .. }
                | ValidationErrorKind::MaxItems { .. }
                | ValidationErrorKind::MaxLength { .. }
        );
        problems.extend(describe::describe(&strict, &error));
    }
    duplicate_keys(schema, object, "", &mut problems);
    Findings {
        problems,
        well_formed,
    }
}

/// The schema with what an API server knows beside it: unknown fields are refused, and metadata
/// has the fields that every Kubernetes object has.
fn strict(schema: &Value) -> Value {
    let mut strict = schema.clone();
    refuse_unknown(&mut strict);
    strict["properties"]["apiVersion"] = json!({"type": "string"});
    strict["properties"]["kind"] = json!({"type": "string"});
    strict["properties"]["metadata"] = metadata();
    if let Some(required) = strict["required"].as_array_mut() {
        required.push("metadata".into());
    }
    strict
}

fn refuse_unknown(schema: &mut Value) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(refuse_unknown);
        schema["additionalProperties"] = false.into();
    }
    if let Some(items) = schema.get_mut("items") {
        refuse_unknown(items);
    }
}

/// ObjectMeta, as far as people write it; what only an API server writes is let through.
fn metadata() -> Value {
    let text = json!({"type": "string"});
    let name = json!({
        "description": "Lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit.",
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    });
    let namespace = json!({
        "description": "Lower-case letters, digits and `-`, beginning and ending with a letter or digit.",
        "type": "string",
        "minLength": 1,
        "maxLength": 63,
        "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    });
    let label = json!({
        "description": "Letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit.",
        "type": "string",
        "maxLength": 63,
        "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
    });
    json!({
        "type": "object",
        "required": ["name"],
        "additionalProperties": false,
        "properties": {
            "name": name,
            "namespace": namespace,
            "labels": {"type": "object", "additionalProperties": label},
            "annotations": {"type": "object", "additionalProperties": text},
            "finalizers": {"type": "array", "items": text},
            "ownerReferences": {"type": "array", "items": {"type": "object"}},
            "managedFields": {"type": "array"},
            "creationTimestamp": {},
            "deletionTimestamp": {},
            "deletionGracePeriodSeconds": {},
            "generation": {"type": "integer"},
            "generateName": text,
            "resourceVersion": text,
            "selfLink": text,
            "uid": text,
        },
    })
}

/// Refuses what an API server refuses in a list whose entries have keys: the same key twice.
fn duplicate_keys(schema: &Value, value: &Value, at: &str, problems: &mut Vec<Problem>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if let Some(schema) = schema["properties"].get(name) {
                    duplicate_keys(schema, field, &path::field(at, name), problems);
                }
            }
        }
        Value::Array(items) => {
            if schema["x-kubernetes-list-type"] == "map" {
                duplicate_entries(&schema["x-kubernetes-list-map-keys"], items, at, problems);
            }
            for (index, item) in items.iter().enumerate() {
                duplicate_keys(&schema["items"], item, &format!("{at}[{index}]"), problems);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn duplicate_entries(keys: &Value, items: &[Value], at: &str, problems: &mut Vec<Problem>) {
    let keys: Vec<&str> = keys
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let key_of = |item: &Value| -> Vec<Value> {
        keys.iter()
            .map(|key| item.get(key).cloned().unwrap_or_default())
            .collect()
    };
    for (index, item) in items.iter().enumerate() {
        let key = key_of(item);
        // A missing key is already reported as a required field.
        if key.contains(&Value::Null) {
            continue;
        }
        if let Some(first) = items[..index]
            .iter()
            .position(|earlier| key_of(earlier) == key)
        {
            let names = keys.join(" and ");
            problems.push(Problem {
                path: format!("{at}[{index}]"),
                message: format!("has the same {names} as {at}[{first}]; {names} must be unique"),
            });
        }
    }
}
