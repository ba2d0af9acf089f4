//! Which fields of a job and its services decide what a result line says, written down so that whoever
//! plans the same output by another spec is told what is different. Pure.

use millrace_crds::InferenceService;
use millrace_crds::batch_job::BatchJobSpec;
use millrace_protocol::plan::SpecField;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Most fields that are written down.
const FIELDS_MAX: usize = 1_000;

/// Longest value that is written down whole, in bytes of JSON.
const VALUE_BYTES_MAX: usize = 120;

/// What a value begins with that is not shown: rows, and what may hold a secret. No JSON begins so.
const HIDDEN: &str = "sha256:";

/// The fields of a job, as pointers into its spec.
const OF_JOB: [&str; 15] = [
    "/routes",
    "/steps",
    "/input/uris",
    "/input/inline",
    "/input/format",
    "/input/compression",
    "/input/idField",
    "/input/textField",
    "/input/normalize",
    "/input/filter",
    "/input/chunking",
    "/input/maxRowBytes",
    "/output/compression",
    "/output/join",
    "/dedup",
];

/// The fields of a service.
const OF_SERVICE: [&str; 10] = [
    "/models",
    "/runtime/image",
    "/runtime/command",
    "/runtime/args",
    "/runtime/env",
    "/runtime/protocol",
    "/runtime/models",
    "/remote/baseUrl",
    "/remote/api",
    "/remote/model",
];

/// Fields whose values are not shown.
const HIDDEN_FIELDS: [&str; 4] = [
    "/input/inline",
    "/runtime/command",
    "/runtime/args",
    "/runtime/env",
];

/// How one spec differs from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpecDifference {
    /// In a field, the first one of several.
    Field {
        /// Its path.
        path: String,
        /// Its value in the spec that is there, if it has one.
        before: Option<String>,
        /// Its value now.
        now: Option<String>,
    },
    /// In something that is not written down, or was not by an earlier version.
    Unnamed {
        /// Hash of the spec that is there.
        before: String,
        /// Hash of this one.
        now: String,
    },
}

impl std::fmt::Display for SpecDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, before, now) = match self {
            SpecDifference::Unnamed { before, now } => return write!(f, "{before}, now {now}"),
            SpecDifference::Field { path, before, now } => (path, before, now),
        };
        let is_hidden =
            |value: &Option<String>| value.as_ref().is_some_and(|it| it.starts_with(HIDDEN));
        if is_hidden(before) || is_hidden(now) {
            return write!(f, "{path} has another value, which is not shown");
        }
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
        write!(f, "{path} was {} and is {} now", shown(before), shown(now))
    }
}

/// The first field in which `now` differs from `before`, in the order of `now`.
pub fn difference(before: &[SpecField], now: &[SpecField]) -> Option<SpecDifference> {
    let value_in = |fields: &[SpecField], path: &str| {
        let found = fields.iter().find(|field| field.path == path);
        found.map(|field| field.value.clone())
    };
    let paths = now.iter().chain(before).map(|field| &field.path);
    let mut all = paths.map(|path| (path, value_in(before, path), value_in(now, path)));
    let (path, before, now) = all.find(|(_, before, now)| before != now)?;
    Some(SpecDifference::Field {
        path: path.clone(),
        before,
        now,
    })
}

/// The decisive fields of a job over `uris`, which are absolute, and of the services that answer.
pub fn fields(
    spec: &BatchJobSpec,
    uris: &[String],
    service: &InferenceService,
    others: &[InferenceService],
) -> Vec<SpecField> {
    let mut fields = Vec::new();
    let mut of_job = json!(spec);
    if spec.input.inline.is_none() {
        of_job["input"]["uris"] = json!(uris);
    }
    for pointer in OF_JOB {
        write_down("spec", &of_job, pointer, &mut fields);
    }
    for (index, service) in [service].into_iter().chain(others).enumerate() {
        // Its name decides nothing.
        let of = match others {
            [] => "InferenceService.spec".to_owned(),
            _ => format!("InferenceService[{index}].spec"),
        };
        for pointer in OF_SERVICE {
            write_down(&of, &json!(service.spec), pointer, &mut fields);
        }
    }
    fields
}

fn write_down(of: &str, spec: &Value, pointer: &str, fields: &mut Vec<SpecField>) {
    let Some(value) = spec.pointer(pointer) else {
        return;
    };
    let path = format!("{of}{}", pointer.replace('/', "."));
    if HIDDEN_FIELDS.contains(&pointer) {
        let value = format!("{HIDDEN}{}", short_hash(&value.to_string()));
        push(fields, SpecField { path, value });
    } else {
        leaves(path, value, fields);
    }
}

fn leaves(path: String, value: &Value, fields: &mut Vec<SpecField>) {
    match value {
        Value::Null => {}
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                leaves(format!("{path}.{key}"), value, fields);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                leaves(format!("{path}[{index}]"), value, fields);
            }
        }
        Value::Object(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let value = shortened(value.to_string());
            push(fields, SpecField { path, value });
        }
    }
}

fn push(fields: &mut Vec<SpecField>, field: SpecField) {
    if fields.len() < FIELDS_MAX {
        fields.push(field);
    }
}

/// A value that is cut keeps apart from others with the same beginning by its hash.
fn shortened(value: String) -> String {
    if value.len() <= VALUE_BYTES_MAX {
        return value;
    }
    let cut = &value[..value.floor_char_boundary(VALUE_BYTES_MAX)];
    format!("{cut}... (sha256 {})", short_hash(&value))
}

fn short_hash(value: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(value)[..4])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::check_service_spec;
    use super::*;

    /// What is said of a job that is changed by `spec` and `service`.
    fn said(spec: Value, service: Value) -> String {
        let (before, now) = (
            check_service_spec(json!({}), json!({})),
            check_service_spec(spec, service),
        );
        assert_ne!(before.spec_sha256, now.spec_sha256);
        let found = difference(&before.spec_fields, &now.spec_fields);
        found.expect("a field is named").to_string()
    }

    #[test]
    fn the_first_field_that_differs_is_named_with_both_values() {
        let check = |spec: Value, service: Value, expected: &str| {
            assert_eq!(said(spec, service), expected);
        };
        let nothing = || json!({});
        check(
            json!({"input": {"uris": ["a.jsonl"], "idField": "id"}}),
            nothing(),
            "spec.input.idField was absent and is \"id\" now",
        );
        check(
            json!({"input": {"uris": ["b.jsonl"]}}),
            nothing(),
            "spec.input.uris[0] was \"file:///a.jsonl\" and is \"file:///b.jsonl\" now",
        );
        check(
            json!({"output": {"uri": "out", "join": ["a"]}}),
            nothing(),
            "spec.output.join[0] was absent and is \"a\" now",
        );
        check(
            json!({"dedup": {}}),
            nothing(),
            "spec.dedup was absent and is {} now",
        );
        check(
            nothing(),
            json!({"image": "tei:2"}),
            "InferenceService.spec.runtime.image was \"tei:1\" and is \"tei:2\" now",
        );
    }

    #[test]
    fn neither_rows_nor_what_may_hold_a_secret_is_shown_or_written_down() {
        let hidden = "has another value, which is not shown";
        let args = json!({"args": ["--api-key=hunter2"]});
        let env = json!({"env": [{"name": "TOKEN", "value": "hunter2"}]});
        for (spec, service, path) in [
            (json!({}), args, "InferenceService.spec.runtime.args"),
            (json!({}), env, "InferenceService.spec.runtime.env"),
        ] {
            let now = check_service_spec(spec.clone(), service.clone());
            assert!(!format!("{:?}", now.spec_fields).contains("hunter2"));
            assert_eq!(said(spec, service), format!("{path} {hidden}"));
        }
        let rows = json!({"input": {"inline": ["a row's text"]}});
        let now = check_service_spec(rows, json!({}));
        assert!(!format!("{:?}", now.spec_fields).contains("a row's text"));
    }

    #[test]
    fn long_values_are_cut_and_still_told_apart() {
        let [one, other] = ["a", "b"].map(|end| shortened("x".repeat(500) + end));
        assert_ne!(one, other);
        assert!(one.len() < 200, "{one}");
    }
}
