//! Programs in Python that are compared with or run against, each in a virtual environment of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache::Cache;
use crate::process::{heading, run};

/// Pinned, so that two runs compare with the same thing.
pub const PACKAGES: &[&str] = &[
    "numpy==2.4.6",
    "sentence-transformers==6.2.0",
    "tokenizers==0.23.3",
    "torch==2.13.0",
    "transformers==5.23.0",
];

/// The client that the stand-in for a paid API must be faithful to.
const OPENAI: &[&str] = &["openai==3.54.0"];

/// Returns the Python of what is compared with, making its environment where it is missing.
pub fn peers(cache: &Cache) -> Result<PathBuf> {
    let what = "sentence-transformers to compare with, some gigabytes";
    environment(cache, "peers", PACKAGES, what)
}

/// Returns the Python of the `openai` client, making its environment where it is missing.
pub fn openai(cache: &Cache) -> Result<PathBuf> {
    environment(cache, "openai", OPENAI, "the openai client for Python")
}

fn environment(cache: &Cache, name: &str, packages: &[&str], what: &str) -> Result<PathBuf> {
    let folder = cache.folder(name, &packages.join("\n"), |making| {
        heading(&format!("installing {what}"));
        run(Command::new("python3").args(["-m", "venv"]).arg(making))?;
        let mut pip = Command::new(making.join("bin/python"));
        pip.args(["-m", "pip", "--disable-pip-version-check", "install"])
            .args(packages);
        run(&mut pip)
    })?;
    Ok(folder.join("bin/python"))
}
