//! From a file to documents: bounded in size, and in what YAML aliases may expand to.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{FILE_BYTES_MAX, ManifestProblem};

/// Reads a file that is at most [`FILE_BYTES_MAX`] long and UTF-8.
pub(super) fn read(path: &Path) -> Result<String, ManifestProblem> {
    let problem = |message| ManifestProblem::of_file(&path.display().to_string(), message);
    let unreadable = |error: std::io::Error| problem(format!("cannot be read: {error}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    // The length is taken from what is read and not from the metadata: a pipe has none.
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(problem(format!(
            "is longer than {FILE_BYTES_MAX} bytes; split it into several files"
        )));
    }
    String::from_utf8(bytes).map_err(|_| problem("is not UTF-8".to_owned()))
}

/// Cuts text into documents; empty ones are left out.
pub(super) fn parse(origin: &str, text: &str) -> Result<Vec<Value>, ManifestProblem> {
    // Snippets would repeat the manifest's text, and with it what may be secret in it.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let message = match error.location() {
            Some(at) => format!(
                "is neither YAML nor JSON at line {}, column {}: {}",
                at.line(),
                at.column(),
                error.without_snippet()
            ),
            None => format!("is neither YAML nor JSON: {}", error.without_snippet()),
        };
        ManifestProblem::of_file(origin, message)
    })
}
