//! Takes out of what is shown to others what they must not see: keys and passwords, and rows. Pure.
//!
//! It would rather take out too much: who reads a report can ask.

use millrace_crds::{BatchJob, InferenceService};
use serde_json::{Map, Value, json};

/// What stands in the place of what was taken out.
const GONE: &str = "[redacted]";

/// How the names end whose values are secret, in lower case and without `-` and `_`.
const SECRET_NAMES: [&str; 10] = [
    "password",
    "passwd",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "accesskeyid",
    "authorization",
    "credential",
    "signature",
];

/// How keys begin that providers give out.
const KEY_PREFIXES: [&str; 9] = [
    "sk-",
    "AKIA",
    "ASIA",
    "ghp_",
    "github_pat_",
    "glpat-",
    "hf_",
    "xox",
    "eyJ",
];

/// Least length of such a key; shorter words are words.
const KEY_CHARS_MIN: usize = 16;

/// Fields of an object's metadata that say something. Annotations hold whole manifests.
const METADATA: [&str; 7] = [
    "name",
    "namespace",
    "uid",
    "generation",
    "labels",
    "creationTimestamp",
    "deletionTimestamp",
];

/// The job without rows, keys and the way to whoever is notified.
pub fn job(job: &BatchJob) -> Value {
    let mut job = json!(job);
    metadata(&mut job);
    if let Some(rows) = job.pointer_mut("/spec/input/inline") {
        let count = rows.as_array().map_or(0, Vec::len);
        *rows = json!(format!("[{count} rows left out]"));
    }
    if let Some(url) = job.pointer_mut("/spec/notify/url") {
        // Whoever knows the path of some receivers may send to them.
        let host = url
            .as_str()
            .map(|url| url.split('/').take(3).collect::<Vec<_>>().join("/"));
        *url = json!(format!("{}/{GONE}", host.unwrap_or_default()));
    }
    if let Some(samples) = job.pointer_mut("/status/sampleErrors") {
        for sample in samples.as_array_mut().into_iter().flatten() {
            // It may quote the row.
            sample
                .as_object_mut()
                .map(|sample| sample.remove("message"));
        }
    }
    if let Some(service) = job.pointer_mut("/spec/serviceTemplate") {
        variables(service);
    }
    strings(&mut job);
    job
}

/// The service without keys and the values of its server's variables.
pub fn service(service: &InferenceService) -> Value {
    let mut service = json!(service);
    metadata(&mut service);
    if let Some(spec) = service.get_mut("spec") {
        variables(spec);
    }
    strings(&mut service);
    service
}

/// A text without keys and passwords, line by line.
pub fn text(text: &str) -> String {
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn metadata(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        let known = METADATA
            .iter()
            .filter_map(|name| metadata.remove_entry(*name));
        *metadata = known.collect::<Map<_, _>>();
    }
}

fn variables(spec: &mut Value) {
    let variables = spec
        .pointer_mut("/runtime/env")
        .and_then(Value::as_array_mut);
    for variable in variables.into_iter().flatten() {
        variable["value"] = json!(GONE);
    }
}

/// All strings of an object, and those of fields that are secret by their name.
fn strings(value: &mut Value) {
    match value {
        Value::String(string) => *string = text(string),
        Value::Array(items) => {
            let mut is_behind_name = false;
            for item in items {
                let names_one = item.as_str().is_some_and(is_secret_option);
                match item {
                    Value::String(string) if is_behind_name => *string = GONE.to_owned(),
                    _ => strings(item),
                }
                is_behind_name = names_one;
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(string) if is_secret(name) => *string = GONE.to_owned(),
                    _ => strings(field),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether what has this name is secret.
fn is_secret(name: &str) -> bool {
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let name = name.to_ascii_lowercase();
    name == "sig" || SECRET_NAMES.iter().any(|end| name.ends_with(end))
}

/// Whether it is an option of a command whose value is secret, which is then the next argument.
fn is_secret_option(word: &str) -> bool {
    word.starts_with("--") && word.chars().all(is_of_word) && is_secret(word)
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn line(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if !is_of_word(first) {
            shown.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, behind) = rest.split_at(rest.find(|c| !is_of_word(c)).unwrap_or(rest.len()));
        let is_key = KEY_PREFIXES.iter().any(|prefix| word.starts_with(prefix));
        if let Some(authority) = behind.strip_prefix("://") {
            let end = authority.find(|c: char| ends_value(c) || "/?#".contains(c));
            let (authority, behind) = authority.split_at(end.unwrap_or(authority.len()));
            let host = authority
                .rsplit_once('@')
                .map(|(_, host)| format!("{GONE}@{host}"));
            shown += word;
            shown += "://";
            shown += host.as_deref().unwrap_or(authority);
            rest = behind;
        } else if is_key && word.len() >= KEY_CHARS_MIN {
            shown += GONE;
            rest = &rest[rest.find(ends_value).unwrap_or(rest.len())..];
        } else if let Some(between) = is_secret(word).then(|| between(behind)).flatten() {
            let (between, value) = behind.split_at(between);
            shown += word;
            shown += between;
            shown += GONE;
            rest = &value[value_end(value)..];
        } else if (is_scheme(word) || is_secret_option(word)) && behind.starts_with(' ') {
            shown += word;
            shown += " ";
            shown += GONE;
            rest = behind.trim_start();
            rest = &rest[rest.find(ends_value).unwrap_or(rest.len())..];
        } else {
            shown += word;
            rest = behind;
        }
    }
    shown
}

/// Whether a key follows, as in the header of a request.
fn is_scheme(word: &str) -> bool {
    ["bearer", "basic"].contains(&word.to_ascii_lowercase().as_str())
}

/// How long the part is between a name and its value, if one follows: `=`, `: "`, `\":\"`.
fn between(behind: &str) -> Option<usize> {
    let end = behind.find(|c: char| !"=:\"'\\ ".contains(c))?;
    let between = &behind[..end];
    between.contains(['=', ':']).then_some(end)
}

fn ends_value(c: char) -> bool {
    c.is_whitespace() || ",;&\"'\\`)]}".contains(c)
}

/// Where a value ends; one behind the name of a scheme is a part of it.
fn value_end(value: &str) -> usize {
    let end = value.find(ends_value).unwrap_or(value.len());
    match value[end..].strip_prefix(' ') {
        Some(behind) if is_scheme(&value[..end]) => {
            end + 1 + behind.find(ends_value).unwrap_or(behind.len())
        }
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::show::testing;

    #[test]
    fn keys_and_passwords_are_taken_out_of_a_line() {
        for (said, expected) in [
            (
                "redis://default:hunter2@redis:6379/0 is away",
                "redis://[redacted]@redis:6379/0 is away",
            ),
            (
                "AWS_SECRET_ACCESS_KEY=abc/def+1 set",
                "AWS_SECRET_ACCESS_KEY=[redacted] set",
            ),
            (
                r#"{"api_key": "abc", "n": 1}"#,
                r#"{"api_key": "[redacted]", "n": 1}"#,
            ),
            (
                r#"{\"password\":\"abc\"}"#,
                r#"{\"password\":\"[redacted]\"}"#,
            ),
            (
                "Authorization: Bearer abc.def ok",
                "Authorization: [redacted] ok",
            ),
            ("sent bearer abcdef", "sent bearer [redacted]"),
            (
                "vllm serve m --api-key team-key --port 8000",
                "vllm serve m --api-key [redacted] --port 8000",
            ),
            ("with sk-0123456789abcdef, twice", "with [redacted], twice"),
            ("got eyJhbGciOiJIUzI1NiJ9.e30.sig", "got [redacted]"),
            (
                "GET https://b.s3/x?X-Amz-Credential=a%2Fb&X-Amz-Signature=0f&n=1",
                "GET https://b.s3/x?X-Amz-Credential=[redacted]&X-Amz-Signature=[redacted]&n=1",
            ),
        ] {
            assert_eq!(text(said), expected);
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for said in [
            "shard 12 committed rows=300 tokens=54321 in 1.2 s",
            "s3://bucket/rows/a.jsonl@120: the line is no JSON",
            "Secret \"store\" is not there",
            "http://127.0.0.1:3000/health",
            "größer als 2 GiB",
        ] {
            assert_eq!(text(said), said);
        }
    }

    #[test]
    fn a_job_is_shown_without_its_rows_and_without_its_receiver() {
        let mut given = json!(testing::job("False", "ShardsFailed"));
        given["metadata"]["annotations"] = json!({"last-applied": "a first row"});
        given["spec"]["input"] = json!({"inline": ["a first row", "a second one"]});
        given["spec"]["notify"] = json!({"url": "https://hooks.example.com/services/T0/B0/x"});
        let shown = job(&serde_json::from_value(given).unwrap());
        assert_eq!(shown["spec"]["input"]["inline"], "[2 rows left out]");
        assert_eq!(
            shown["spec"]["notify"]["url"],
            "https://hooks.example.com/[redacted]"
        );
        assert_eq!(shown["status"]["sampleErrors"][0]["code"], "invalid_json");
        assert_eq!(shown["status"]["conditions"][0]["reason"], "ShardsFailed");
        let whole = shown.to_string();
        for gone in ["first row", "no JSON", "services/T0"] {
            assert!(!whole.contains(gone), "{whole}");
        }
    }

    #[test]
    fn a_service_is_shown_without_the_values_of_its_variables() {
        let given = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "bge"},
            "spec": {"runtime": {
                "image": "i", "port": 3000, "protocol": "TEI", "args": ["--api-key=abc", "--api-key", "def", "--port", "1"],
                "env": [{"name": "HF_TOKEN", "value": "abc"}],
                "models": [{"name": "bge", "task": "Embedding"}],
            }},
        });
        let shown = service(&serde_json::from_value(given).unwrap());
        let runtime = &shown["spec"]["runtime"];
        assert_eq!(
            runtime["env"][0],
            json!({"name": "HF_TOKEN", "value": GONE})
        );
        let args = ["--api-key=[redacted]", "--api-key", GONE, "--port", "1"];
        assert_eq!(runtime["args"], json!(args));
        assert_eq!(runtime["image"], "i");
    }
}
