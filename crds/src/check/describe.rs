//! Turns what the schema check found into sentences that say what to do.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{JsonType, ValidationError};
use serde_json::Value;

use super::{Problem, path};

/// Characters of an unexpected name or enum value that a message repeats.
const SHOWN_CHARS_MAX: usize = 40;

/// Where rows stand in a manifest.
const ROWS: &str = "spec.input.inline";

/// Most bytes of a URI that a message repeats.
const URI_BYTES_MAX: usize = 256;

/// One problem per thing that is wrong: several unknown fields are several problems.
pub(super) fn describe(schema: &Value, error: &ValidationError) -> Vec<Problem> {
    let at = path::of(error.instance_path());
    let one = |message: String| {
        vec![Problem {
            path: at.clone(),
            message,
        }]
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known = known_fields(schema, error);
            let problem = |name: &String| Problem {
                path: path::field(&at, clipped(name)),
                message: unknown_field(name, &known),
            };
            unexpected.iter().map(problem).collect()
        }
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            vec![Problem {
                path: path::field(&at, name),
                message: required(schema, error, name),
            }]
        }
        ValidationErrorKind::Enum { options } => one(not_allowed(error.instance(), options)),
        ValidationErrorKind::Type { kind } => one(wrong_type(&at, error.instance(), kind)),
        ValidationErrorKind::Minimum { limit } => one(format!(
            "{} is too small; the least is {}",
            error.instance(),
            limit
        )),
        ValidationErrorKind::Maximum { limit } => one(format!(
            "{} is too large; the most is {}",
            error.instance(),
            limit
        )),
        ValidationErrorKind::MinLength { limit: 1 } => one("must not be empty".to_owned()),
        ValidationErrorKind::MinLength { limit } => one(format!(
            "is too short; at least {limit} characters are needed"
        )),
        ValidationErrorKind::MaxLength { limit } => one(format!(
            "is too long; at most {limit} characters are allowed"
        )),
        ValidationErrorKind::MinItems { limit: 1 } => one("must not be empty".to_owned()),
        ValidationErrorKind::MinItems { limit } => {
            one(format!("has too few entries; at least {limit} are needed"))
        }
        ValidationErrorKind::MaxItems { limit } => {
            one(format!("has too many entries; at most {limit} are allowed"))
        }
        // That it is empty is said already.
        ValidationErrorKind::Pattern { .. } if has_no_text(schema, error) => Vec::new(),
        ValidationErrorKind::Pattern { pattern } => {
            let uri = error.instance().as_str().filter(|text| is_bare_uri(text));
            one(match (uri, description(schema, error)) {
                (Some(uri), Some(description)) => format!("{uri:?} is not accepted; {description}"),
                (None, Some(description)) => format!("has not the expected form. {description}"),
                (_, None) => format!("does not match {pattern}"),
            })
        }
        // The generated schemas use no other keyword. Its name is all that can be told without
        // repeating the value.
        other => one(format!("is refused by the schema's `{}`", other.keyword())),
    }
}

/// A text in quotes, cut to what a message may hold.
pub(crate) fn shown(text: &str) -> String {
    format!("{:?}", clipped(text))
}

/// A text cut to what a message may hold.
pub(crate) fn clipped(text: &str) -> &str {
    let end = text
        .char_indices()
        .nth(SHOWN_CHARS_MAX)
        .map_or(text.len(), |(end, _)| end);
    &text[..end]
}

fn unknown_field(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(nearest) => format!("unknown field; did you mean {nearest}?"),
        None => format!("unknown field; known are {}", known.join(", ")),
    }
}

/// The known name that differs least, if it differs by little.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase();
    let distance_max = (name.chars().count() / 3).clamp(1, 3);
    let candidate = |known: &&'a str| {
        let lower = known.to_lowercase();
        let distance =
            match name.len() >= 3 && (lower.starts_with(&name) || name.starts_with(&lower)) {
                true => 1,
                false => distance(&name, &lower),
            };
        (distance <= distance_max).then_some((distance, *known))
    };
    known
        .iter()
        .filter_map(candidate)
        .min()
        .map(|(_, nearest)| nearest)
}

/// Edits (insert, delete, replace) between two names.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

fn required(schema: &Value, error: &ValidationError, name: &str) -> String {
    let field = parent(schema, error).and_then(|object| object["properties"].get(name));
    let description = field.and_then(|field| field["description"].as_str());
    match description {
        Some(description) => format!("is required. {}", joined(description)),
        None => "is required".to_owned(),
    }
}

fn not_allowed(instance: &Value, options: &Value) -> String {
    let options: Vec<&str> = options
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let allowed = options.join(", ");
    match instance.as_str() {
        // A long text in the place of an enum value is no typing mistake, and may be anything.
        Some(text) if text.chars().count() <= SHOWN_CHARS_MAX => match nearest(text, &options) {
            Some(nearest) => {
                format!("{text:?} is not allowed; did you mean {nearest}? Allowed are {allowed}")
            }
            None => format!("{text:?} is not allowed; allowed are {allowed}"),
        },
        _ => format!("is not allowed; allowed are {allowed}"),
    }
}

/// Whether a text is a URI of a place alone: scheme, host and path, with nothing that may be a secret.
fn is_bare_uri(text: &str) -> bool {
    let Some((scheme, place)) = text.split_once("://") else {
        return false;
    };
    let is_of = |text: &str, others: &str| {
        text.chars()
            .all(|it| it.is_ascii_alphanumeric() || others.contains(it))
    };
    text.len() <= URI_BYTES_MAX && is_of(scheme, "+.-") && is_of(place, "/._-*[]{},")
}

fn wrong_type(at: &str, instance: &Value, kind: &TypeKind) -> String {
    let (wanted, help) = match (kind, instance) {
        (TypeKind::Single(JsonType::Integer), Value::String(_)) => {
            (format!("a whole number{}", unit(at)), String::new())
        }
        // YAML makes numbers and booleans of what looks like them.
        (TypeKind::Single(JsonType::String), Value::Number(_) | Value::Bool(_)) => {
            ("a string".to_owned(), quotes(at, instance))
        }
        (TypeKind::Single(wanted), _) => (article(wanted.as_str()).to_owned(), String::new()),
        (TypeKind::Multiple(_), _) => ("a value of another type".to_owned(), String::new()),
    };
    let found = match instance {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("must be {wanted}, but is {found}{help}")
}

/// How to write a value that is to be a text. What stands in a row is not repeated.
fn quotes(at: &str, value: &Value) -> String {
    match at.starts_with(ROWS) {
        true => "; write it in quotes".to_owned(),
        false => format!("; write it in quotes: \"{value}\""),
    }
}

/// The unit of a number, with an example: it stands last in the name of the field.
fn unit(field: &str) -> &'static str {
    if field.ends_with("Bytes") {
        " of bytes, such as 65536"
    } else if field.ends_with("Seconds") {
        " of seconds, such as 3600"
    } else {
        ""
    }
}

fn article(wanted: &str) -> &str {
    match wanted {
        "array" => "a list",
        "boolean" => "a boolean",
        "integer" => "a whole number",
        "number" => "a number",
        "object" => "an object",
        "string" => "a string",
        other => other,
    }
}

fn known_fields<'a>(schema: &'a Value, error: &ValidationError) -> Vec<&'a str> {
    let properties = parent(schema, error).and_then(|object| object["properties"].as_object());
    properties
        .into_iter()
        .flat_map(|properties| properties.keys().map(String::as_str))
        .collect()
}

fn has_no_text(schema: &Value, error: &ValidationError) -> bool {
    let bounded = parent(schema, error).is_some_and(|field| field.get("minLength").is_some());
    bounded && error.instance().as_str() == Some("")
}

/// The schema object that holds the keyword that failed.
fn parent<'a>(schema: &'a Value, error: &ValidationError) -> Option<&'a Value> {
    schema.pointer(error.schema_path().as_str().rsplit_once('/')?.0)
}

/// What the schema says of the field; the entries of a list are described where the list is.
fn description(schema: &Value, error: &ValidationError) -> Option<String> {
    let pointer = error.schema_path().as_str();
    let (field, _keyword) = pointer.rsplit_once('/')?;
    let list = field.strip_suffix("/items");
    let found = [Some(field), list]
        .into_iter()
        .flatten()
        .find_map(|pointer| schema.pointer(pointer)?.get("description")?.as_str())?;
    Some(joined(found))
}

/// Doc comments are wrapped where they stand in the code; a message is one line.
fn joined(description: &str) -> String {
    description
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
}
