//! Checks an object against its kind's CRD schema as an API server would, and more strictly: an
//! unknown field is refused instead of dropped.
//!
//! The steps, in order: nulls that stand for "not set" are dropped and defaults filled in (as an
//! API server does), then structure and bounds are checked, then the CEL rules. All problems are
//! collected. Knows nothing of files; see [`crate::manifest`] for those.

mod describe;
mod path;
mod rules;
mod structure;

use std::fmt;

use serde_json::Value;

use crate::crd;
use crate::manifest::Kind;

pub(crate) use self::describe::{clipped, shown};

/// One thing that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Path of the field, such as `spec.input.uris[0]`; empty for the object itself.
    pub path: String,
    /// What is wrong and what to do. Never holds a string value of the object other than names of
    /// fields, enum values and URIs that hold no credentials.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Checks a new object. Returns it with its defaults filled in, or everything that is wrong.
pub fn check(kind: Kind, object: &Value) -> Result<Value, Vec<Problem>> {
    check_with(kind, object, None)
}

/// Checks that `old` may become `new`: everything [`check`] checks, and the rules for transitions.
pub fn check_update(kind: Kind, old: &Value, new: &Value) -> Result<Value, Vec<Problem>> {
    let old = complete(&crd::schema(kind), old);
    check_with(kind, new, Some(&old))
}

fn check_with(kind: Kind, object: &Value, old: Option<&Value>) -> Result<Value, Vec<Problem>> {
    let schema = crd::schema(kind);
    let object = complete(&schema, object);
    let structure::Findings {
        mut problems,
        well_formed,
    } = structure::check(&schema, &object);
    problems.sort();
    // A rule cannot be evaluated on a value of the wrong shape; an API server skips them as well.
    if well_formed {
        let in_form = problems.is_empty();
        // They come last: a misspelt field explains what a rule says of one that it misses.
        let mut of_rules = rules::check(&schema, &object, old, in_form);
        of_rules.sort();
        problems.append(&mut of_rules);
    }
    problems.dedup();
    if problems.is_empty() {
        Ok(object)
    } else {
        Err(problems)
    }
}

/// The object as an API server would store it: nulls dropped, defaults filled in.
fn complete(schema: &Value, object: &Value) -> Value {
    let mut object = object.clone();
    drop_nulls(schema, &mut object);
    kube::core::cel::apply_defaults(schema, &object)
}

/// Drops nulls of optional fields: `field: null` says the same as no field.
fn drop_nulls(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let required = schema["required"].as_array();
            let is_required = |name: &str| {
                required.is_some_and(|names| names.iter().any(|required| required == name))
            };
            let properties = &schema["properties"];
            fields.retain(|name, field| {
                !field.is_null() || properties.get(name).is_none() || is_required(name)
            });
            for (name, field) in fields {
                if let Some(schema) = properties.get(name) {
                    drop_nulls(schema, field);
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| drop_nulls(&schema["items"], item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
