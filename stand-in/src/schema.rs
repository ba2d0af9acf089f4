//! A value that a JSON schema allows, made of what was asked. Pure.
//!
//! Plays a model that follows its instructions: an array gets one item per row of the request, an
//! integer called `index` says which, and strings speak of the row.

use serde_json::{Map, Value, json};

/// Longest string of an answer, in characters.
const WORDS_CHARS_MAX: usize = 80;

/// Deepest value that is made; a schema may refer to itself.
const DEPTH_MAX: usize = 16;

/// A value of `schema` about `rows`.
pub fn value(schema: &Value, rows: &[String]) -> Value {
    let whole = rows.join(" ");
    make(schema, schema, &whole, rows, None, DEPTH_MAX)
}

fn make(
    root: &Value,
    schema: &Value,
    about: &str,
    rows: &[String],
    index: Option<usize>,
    depth: usize,
) -> Value {
    if depth == 0 {
        return Value::Null;
    }
    if let Some(target) = schema["$ref"].as_str() {
        let target = root.pointer(target.trim_start_matches('#'));
        return target.map_or(Value::Null, |schema| {
            make(root, schema, about, rows, index, depth - 1)
        });
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(first) = schema[choice].get(0) {
            return make(root, first, about, rows, index, depth - 1);
        }
    }
    if let Some(choices) = schema["enum"].as_array().filter(|it| !it.is_empty()) {
        return choices[hash(about) as usize % choices.len()].clone();
    }
    if let Some(only) = schema.get("const") {
        return only.clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.first().and_then(Value::as_str),
        kind => kind.as_str(),
    };
    match kind {
        Some("object") => {
            let properties = schema["properties"].as_object();
            let made = properties.into_iter().flatten().map(|(name, schema)| {
                let value = match (name.as_str(), index) {
                    ("index", Some(index)) => json!(index),
                    _ => make(root, schema, about, rows, index, depth - 1),
                };
                (name.clone(), value)
            });
            Value::Object(made.collect::<Map<_, _>>())
        }
        Some("array") => {
            let items = &schema["items"];
            let item = |(index, row): (usize, &String)| {
                make(root, items, row, &[], Some(index), depth - 1)
            };
            Value::Array(rows.iter().enumerate().map(item).collect())
        }
        Some("integer") => json!(hash(about) % 100),
        Some("number") => json!((hash(about) % 100) as f64 / 100.0),
        Some("boolean") => json!(hash(about).is_multiple_of(2)),
        Some("null") => Value::Null,
        _ => json!(words(about)),
    }
}

/// What is said about a text.
pub fn words(about: &str) -> String {
    let head: String = about.chars().take(WORDS_CHARS_MAX).collect();
    format!("On: {head}")
}

/// FNV-1a: the same text gets the same answer in every run.
pub fn hash(text: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(start, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_has_one_item_per_row_and_each_speaks_of_its_own() {
        let schema = json!({
            "type": "object",
            "properties": {"answers": {"type": "array", "items": {
                "type": "object",
                "properties": {"index": {"type": "integer"}, "answer": {"type": "string"}},
            }}},
        });
        let made = value(&schema, &["one".to_owned(), "two".to_owned()]);
        let expected = json!({"answers": [
            {"index": 0, "answer": "On: one"},
            {"index": 1, "answer": "On: two"},
        ]});
        assert_eq!(made, expected);
    }

    #[test]
    fn a_schema_that_refers_to_itself_comes_to_an_end() {
        let schema = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        assert!(value(&schema, &[]).is_object());
    }
}
