//! Reads what `lint` and `submit` are given: a file, a folder or standard input.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use millrace_crds::manifest::{self, Documents, ManifestError};

/// Whether there is such a file or folder; `-` is standard input.
pub fn found(file: &Path) -> anyhow::Result<()> {
    if file != Path::new("-") {
        let there = std::fs::metadata(file);
        there.with_context(|| format!("{} cannot be read", file.display()))?;
    }
    Ok(())
}

/// The checked documents of a file or folder; `-` is standard input.
pub fn read(file: &Path) -> anyhow::Result<Result<Documents, ManifestError>> {
    if file != Path::new("-") {
        return Ok(manifest::documents_of_path(file));
    }
    let mut text = String::new();
    let bytes_max = manifest::FILE_BYTES_MAX;
    std::io::stdin()
        .take(bytes_max as u64 + 1)
        .read_to_string(&mut text)
        .context("standard input cannot be read")?;
    anyhow::ensure!(
        text.len() <= bytes_max,
        "standard input is longer than {bytes_max} bytes"
    );
    Ok(manifest::documents_of_str("standard input", &text))
}
