//! The chart's values and their schema say the same.

use serde_json::Value;

use crate::files;

const VALUES: &str = "charts/millrace/values.yaml";
const SCHEMA: &str = "charts/millrace/values.schema.json";

/// What stands for any number of things that the chart does not know by name, such as labels.
const FREE: [&str; 2] = ["object", "array"];

#[test]
fn every_value_is_described_and_every_description_has_a_value() {
    let schema = files::yaml(SCHEMA);
    let mut wrong = Vec::new();
    compare(&schema, &schema, &files::yaml(VALUES), "", &mut wrong);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Walks values and schema side by side.
fn compare(root: &Value, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        let kind = schema["type"].as_str().unwrap_or_default();
        if value.is_object() && !FREE.contains(&kind) {
            wrong.push(format!("{at}: the schema knows nothing of what is in it"));
        }
        return;
    };
    if schema["additionalProperties"] != false {
        wrong.push(format!("{at}: an unknown value would be let through"));
    }
    for name in value.as_object().into_iter().flat_map(|it| it.keys()) {
        if !properties.contains_key(name) {
            wrong.push(format!("{at}.{name}: not in the schema"));
        }
    }
    for (name, property) in properties {
        let at = format!("{at}.{name}");
        if property["description"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            wrong.push(format!("{at}: not described"));
        }
        match value.get(name) {
            Some(value) => compare(root, resolved(root, property), value, &at, wrong),
            None if is_optional(&at) => {}
            None => wrong.push(format!(
                "{at}: not in values.yaml, where people look for it"
            )),
        }
    }
}

/// Values that belong to Kubernetes or Helm and are not listed one by one.
fn is_optional(at: &str) -> bool {
    at == ".global" || at.contains(".resources.")
}

/// The schema that a reference within the same file names.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(reference) = schema["$ref"].as_str() else {
        return schema;
    };
    let pointer = reference
        .strip_prefix('#')
        .expect("a reference within the file");
    root.pointer(pointer)
        .unwrap_or_else(|| panic!("{reference} leads nowhere"))
}
