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
    use std::collections::BTreeSet;
    use std::path::Path;

    use millrace_crds::crd::schema;
    use millrace_crds::manifest::Kind;
    use serde_json::{Value, json};

    use super::super::tests::{check_service_spec, manifest};
    use super::super::{CheckedJob, check};
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

    /// The specs of a job and of a service that answers in every way at once, which no schema would let
    /// through, so that one service has all fields.
    fn specs() -> Value {
        json!({
            "job": {
                "serviceRef": {"name": "service"},
                "input": {"uris": ["a.jsonl"]}, "output": {"uri": "out"},
            },
            "service": {
                "models": [{"name": "own", "task": "Embedding", "source": {"uri": "hf://a/b"}}],
                "runtime": {
                    "image": "tei:1", "port": 80, "protocol": "TEI",
                    "models": [{"name": "brought", "task": "Embedding"}],
                },
                "remote": {
                    "baseUrl": "https://api.example.com/v1", "api": "Embeddings", "model": "elsewhere",
                    "pricing": {"inputPerMillionTokens": "1"},
                },
            },
        })
    }

    /// Another value than in [`specs`] for each field of a job.
    fn other_jobs() -> Vec<(&'static str, Value)> {
        let models = json!([{"name": "other", "task": "Embedding", "source": {"uri": "hf://a/b"}}]);
        let secret = json!({"name": "secret"});
        vec![
            ("/job/serviceRef", json!({"name": "another"})),
            ("/job/serviceTemplate", json!({"models": models})),
            (
                "/job/routes",
                json!([{"name": "all", "serviceRef": {"name": "service"}}]),
            ),
            ("/job/steps", json!([{"name": "a", "model": "own"}])),
            ("/job/input/uris", json!(["b.jsonl"])),
            ("/job/input/inline", json!(["a text"])),
            ("/job/input/format", json!("Csv")),
            ("/job/input/compression", json!("Gzip")),
            ("/job/input/idField", json!("id")),
            ("/job/input/textField", json!("body")),
            ("/job/input/normalize", json!({"lowercase": true})),
            ("/job/input/filter", json!({"minChars": 5})),
            ("/job/input/order", json!(["stars > 3"])),
            ("/job/input/chunking", json!({"maxTokens": 100})),
            ("/job/input/maxRowBytes", json!(2_048)),
            ("/job/output/uri", json!("elsewhere")),
            ("/job/output/compression", json!("Zstd")),
            ("/job/output/join", json!(["title"])),
            ("/job/output/merge", json!(true)),
            (
                "/job/output/postgres",
                json!({"secretRef": secret, "table": "results"}),
            ),
            ("/job/sharding", json!({"targetBytes": 2_048})),
            ("/job/retry", json!({"maxAttempts": 9})),
            ("/job/rerunFailed", json!(1)),
            ("/job/maxFailedRows", json!(5)),
            ("/job/maxFailedIndexes", json!(5)),
            ("/job/incremental", json!({"from": "earlier"})),
            ("/job/dedup", json!({})),
            ("/job/budget", json!({"maxCost": "5"})),
            ("/job/suspend", json!(true)),
            ("/job/cancel", json!(true)),
            ("/job/activeDeadlineSeconds", json!(60)),
            ("/job/ttlSecondsAfterFinished", json!(60)),
            ("/job/managedBy", json!("example.com/another")),
            ("/job/priority", json!(1)),
            ("/job/credentials", secret.clone()),
            ("/job/notify", json!({"url": "https://example.com"})),
            ("/job/reader", json!({"secretRef": secret})),
            ("/job/backoffLimitPerIndex", json!(9)),
        ]
    }

    /// The same for each field of a service.
    fn other_services() -> Vec<(&'static str, Value)> {
        let models = json!([{"name": "other", "task": "Embedding", "source": {"uri": "hf://a/b"}}]);
        let secret = json!({"name": "secret"});
        vec![
            ("/service/models", models),
            ("/service/runtime/image", json!("tei:2")),
            ("/service/runtime/command", json!(["serve"])),
            ("/service/runtime/args", json!(["--dtype=float16"])),
            ("/service/runtime/env", json!([{"name": "A", "value": "b"}])),
            ("/service/runtime/port", json!(8_080)),
            ("/service/runtime/protocol", json!("OpenAI")),
            ("/service/runtime/readyPath", json!("/ready")),
            ("/service/runtime/maxBatchSize", json!(8)),
            (
                "/service/runtime/models",
                json!([{"name": "other", "task": "Embedding"}]),
            ),
            (
                "/service/remote/baseUrl",
                json!("https://api.example.com/v2"),
            ),
            ("/service/remote/api", json!("Chat")),
            ("/service/remote/model", json!("other")),
            ("/service/remote/apiKeySecretRef", secret.clone()),
            ("/service/remote/rowsPerCall", json!(7)),
            ("/service/remote/rowsPerCallMax", json!(9)),
            ("/service/remote/limits", json!({"requestsPerMinute": 5})),
            (
                "/service/remote/pricing",
                json!({"inputPerMillionTokens": "2"}),
            ),
            ("/service/remote/stream", json!(true)),
            ("/service/remote/timeout", json!("5s")),
            ("/service/batching", json!({"maxBatchSize": 8})),
            ("/service/cache", json!({"enabled": true})),
            ("/service/auth", json!({"secretRef": secret})),
            ("/service/autoscaling", json!({"maxReplicas": 3})),
            ("/service/secrets", json!([secret])),
            ("/service/modelCache", json!({"hostPath": "/models"})),
            ("/service/template", json!({"serviceAccountName": "a"})),
        ]
    }

    /// The fields that a spec of this kind may have, as far apart as the `decisive` ones of them are.
    fn fields_of(kind: Kind, of: &str, decisive: &[&str]) -> BTreeSet<String> {
        let schema = schema(kind);
        let names = |schema: &Value| -> Vec<String> {
            let fields = schema["properties"].as_object().unwrap();
            fields.keys().cloned().collect()
        };
        let spec = &schema["properties"]["spec"];
        let paths = names(spec).into_iter().flat_map(|name| {
            let below = format!("/{name}/");
            if !decisive.iter().any(|it| it.starts_with(&below)) {
                return vec![format!("{of}/{name}")];
            }
            let inner = names(&spec["properties"][&name]).into_iter();
            inner.map(|inner| format!("{of}{below}{inner}")).collect()
        });
        paths.collect()
    }

    fn checked(specs: &Value) -> CheckedJob {
        let Value::String(service) = &specs["job"]["serviceRef"]["name"] else {
            panic!("the job names its service");
        };
        check(
            &manifest("BatchJob", "job", specs["job"].clone()),
            &manifest("InferenceService", service, specs["service"].clone()),
            Path::new("/"),
        )
        .unwrap()
    }

    #[test]
    fn every_field_is_named_that_makes_another_spec_and_no_other() {
        let values = [other_jobs(), other_services()].concat();
        let known = values.iter().map(|(path, _)| (*path).to_owned()).collect();
        let mut fields = fields_of(Kind::BatchJob, "/job", &OF_JOB);
        fields.extend(fields_of(Kind::InferenceService, "/service", &OF_SERVICE));
        assert_eq!(fields, known, "each field has another value above");

        let before = checked(&specs());
        let mut decisive = BTreeSet::new();
        for (path, value) in values {
            let mut specs = specs();
            let (of, name) = path.rsplit_once('/').unwrap();
            specs.pointer_mut(of).unwrap()[name] = value;
            let now = checked(&specs);
            let is_decisive = now.spec_sha256 != before.spec_sha256;
            let named = path.replacen("/job", "spec", 1);
            let named = named.replacen("/service", "InferenceService.spec", 1);
            let named = named.replace('/', ".");
            let [of_before, of_now] = [&before, &now].map(|job| {
                let mut fields = job.spec_fields.clone();
                fields.retain(|field| field.path.starts_with(&named));
                fields
            });
            let said = difference(&of_before, &of_now);
            assert_eq!(said.is_some(), is_decisive, "{path}: {said:?}");
            decisive.extend(is_decisive.then_some(path));
        }
        let listed = OF_JOB.iter().map(|it| format!("/job{it}"));
        let listed: BTreeSet<_> = listed
            .chain(OF_SERVICE.iter().map(|it| format!("/service{it}")))
            .collect();
        assert!(decisive.iter().copied().eq(&listed), "{decisive:?}");
    }

    #[test]
    fn long_values_are_cut_and_still_told_apart() {
        let [one, other] = ["a", "b"].map(|end| shortened("x".repeat(500) + end));
        assert_ne!(one, other);
        assert!(one.len() < 200, "{one}");
    }
}
