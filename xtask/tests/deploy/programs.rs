//! Other people's programs, where this machine has them.

use std::path::PathBuf;

use millrace_e2e::skips::skip;

/// A program of the Kubernetes that `cargo xtask cluster up` builds; `None`, with a note of the skipped
/// test, where it is not built.
pub fn of_kubernetes(name: &str) -> Option<PathBuf> {
    let found = cache().and_then(|cache| {
        let entries = std::fs::read_dir(cache).ok()?;
        let mut folders: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let folder = path.file_name().unwrap_or_default().to_string_lossy();
                folder.starts_with("kubernetes-") && path.join("bin").join(name).is_file()
            })
            .collect();
        folders.sort();
        Some(folders.pop()?.join("bin").join(name))
    });
    if found.is_none() {
        skip(&format!(
            "{name} is not built; `cargo xtask test` builds it"
        ));
    }
    found
}

/// A program of the search path; `None`, with a note of the skipped test, where it is not installed.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// The folder in which xtask keeps what it builds.
fn cache() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    folder("MILLRACE_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("millrace")))
        .or_else(|| Some(folder("HOME")?.join(".cache/millrace")))
}
