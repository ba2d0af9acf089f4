//! Files of the repository that tests take, and what they make of them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository.
pub fn repository() -> PathBuf {
    // Checkouts share compiled tests, so the path is asked for when they run.
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&crate_folder).join("..")
}

/// Copies a file, or a folder with all that lies in it. `to` is the copy itself; a folder is made with those
/// above it.
pub fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        let copied = std::fs::copy(from, to);
        copied.unwrap_or_else(|error| panic!("{} is not copied: {error}", from.display()));
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// Makes stand-ins for the classifiers of the examples, each as `<example>/models/<classifier>` below `to`.
pub fn make_models(to: &Path) {
    let mut make = Command::new("python3");
    make.arg(repository().join("e2e/make_models.py"));
    make.arg("--to").arg(to);
    assert!(make.status().unwrap().success(), "{make:?}");
}
