//! Files of the repository, read as they are.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A path below the repository.
pub fn path(relative: &str) -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this"))
        .parent()
        .expect("xtask has a parent")
        .join(relative)
}

/// The text of a file of the repository.
pub fn text(relative: &str) -> String {
    std::fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// A YAML or JSON file of one document.
pub fn yaml(relative: &str) -> Value {
    serde_saphyr::from_str(&text(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// Names of the files in a folder, in order.
pub fn names(relative: &str) -> Vec<String> {
    let entries = std::fs::read_dir(path(relative)).expect("the folder can be read");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("the folder can be read").file_name())
        .map(|name| name.into_string().expect("names are UTF-8"))
        .collect();
    names.sort();
    names
}
