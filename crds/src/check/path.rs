//! Field paths as people write them.

use jsonschema::paths::{Location, LocationSegment};

/// `spec.input.uris[0]` from the JSON pointer `/spec/input/uris/0`.
pub(super) fn of(location: &Location) -> String {
    let mut path = String::new();
    for segment in location {
        match segment {
            LocationSegment::Property(name) => push(&mut path, &name),
            LocationSegment::Index(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

/// The path of a field of the object at `parent`.
pub(super) fn field(parent: &str, name: &str) -> String {
    let mut path = parent.to_owned();
    push(&mut path, name);
    path
}

fn push(path: &mut String, name: &str) {
    // A name with other characters, such as a label's key, would read as several fields.
    let plain = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (plain, path.is_empty()) {
        (true, true) => path.push_str(name),
        (true, false) => path.push_str(&format!(".{name}")),
        (false, _) => path.push_str(&format!("[{name:?}]")),
    }
}
