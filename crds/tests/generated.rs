//! What the generated CRDs are, and that the files hold them.

use std::path::Path;

use millrace_crds::crd;
use millrace_crds::manifest::Kind;
use serde_json::Value;

#[test]
fn the_generated_files_are_what_the_types_say() {
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let folders = crd::FOLDERS.map(|folder| Path::new(&crate_folder).join(folder));
    for (folder, kind) in folders
        .iter()
        .flat_map(|folder| Kind::ALL.map(|kind| (folder, kind)))
    {
        let path = folder.join(crd::file_name(kind));
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == crd::yaml(kind),
            "{} is stale: run cargo run -p millrace-crds --bin crdgen",
            path.display()
        );
    }
}

#[test]
fn the_generated_files_read_back_as_the_definition() {
    for kind in Kind::ALL {
        let read: Value = serde_saphyr::from_str(&crd::yaml(kind)).unwrap();
        assert_eq!(read, crd::definition(kind));
    }
}

#[test]
fn every_field_has_a_description() {
    walk_all(&mut |at, schema| {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let description = field["description"].as_str().unwrap_or_default();
            assert!(!description.is_empty(), "{at}.{name} has no description");
        }
    });
}

#[test]
fn an_optional_enum_keeps_the_description_of_its_field() {
    let schema = crd::schema(Kind::BatchJob);
    let format = &schema["properties"]["spec"]["properties"]["input"]["properties"]["format"];
    let description = format["description"].as_str().unwrap();
    assert!(description.contains("By default"), "{description}");
}

#[test]
fn schemas_are_structural() {
    walk_all(&mut |at, schema| {
        // A number or a percentage has the one form that an API server knows for it.
        let is_either = schema["x-kubernetes-int-or-string"] == true;
        assert!(
            schema["type"].is_string() || is_either,
            "{at} has no single type"
        );
        for keyword in ["$ref", "oneOf", "anyOf", "allOf", "not", "const", "$defs"] {
            assert!(schema.get(keyword).is_none(), "{at} uses {keyword}");
        }
        // A map says what its values are, and has no fields beside them.
        if let Some(values) = schema.get("additionalProperties") {
            assert!(values["type"].is_string(), "{at} is a map of anything");
            assert!(schema.get("properties").is_none(), "{at} is map and object");
            assert!(schema["maxProperties"].is_number(), "{at} is unbounded");
        }
    });
}

#[test]
fn formats_are_ones_that_an_api_server_knows() {
    walk_all(&mut |at, schema| {
        if let Some(format) = schema["format"].as_str() {
            let known = ["int32", "int64", "double", "date-time"];
            assert!(known.contains(&format), "{at} has format {format}");
        }
    });
}

#[test]
fn every_list_and_text_of_a_spec_is_bounded() {
    for kind in Kind::ALL {
        let schema = crd::schema(kind);
        walk(".spec", &schema["properties"]["spec"], &mut |at, schema| {
            let bounded = match schema["type"].as_str() {
                Some("array") => schema.get("maxItems").is_some(),
                // A pattern without a length is a duration or a digest, whose rules bound it.
                Some("string") => ["maxLength", "enum", "pattern"]
                    .iter()
                    .any(|keyword| schema.get(keyword).is_some()),
                Some("integer") => {
                    schema.get("minimum").is_some() && schema.get("maximum").is_some()
                }
                _ => true,
            };
            assert!(bounded, "{at} is unbounded");
        });
    }
}

/// What `kubectl get` shows of a kind: of each column its name and whether `-o wide` alone has it.
fn columns(kind: Kind) -> Vec<(String, bool)> {
    let definition = crd::definition(kind);
    let columns = &definition["spec"]["versions"][0]["additionalPrinterColumns"];
    let columns = columns.as_array().expect("columns").iter();
    columns
        .map(|column| {
            let name = column["name"].as_str().expect("a name");
            (name.to_owned(), column["priority"] == 1)
        })
        .collect()
}

#[test]
fn kubectl_shows_these_columns_and_no_others() {
    let check = |kind, usual: &[&str], wide: &[&str]| {
        let usual = usual.iter().map(|name| ((*name).to_owned(), false));
        let wide = wide.iter().map(|name| ((*name).to_owned(), true));
        let expected: Vec<_> = usual.chain(wide).collect();
        assert_eq!(columns(kind), expected);
    };
    check(
        Kind::BatchJob,
        &["Succeeded", "Reason", "Progress", "Failed", "Age"],
        &["Workers", "Rows/s", "ETA", "Output"],
    );
    check(
        Kind::InferenceService,
        &["URL", "Ready", "Reason", "Replicas", "Age"],
        &[],
    );
}

fn walk_all(visit: &mut dyn FnMut(&str, &Value)) {
    for kind in Kind::ALL {
        let schema = crd::schema(kind);
        for part in ["spec", "status"] {
            if let Some(schema) = schema["properties"].get(part) {
                walk(part, schema, visit);
            }
        }
    }
}

fn walk(at: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    visit(at, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{at}.{name}"), field, visit);
    }
    if let Some(items) = schema.get("items") {
        walk(&format!("{at}[]"), items, visit);
    }
}
