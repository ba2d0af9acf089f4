//! The program that the benchmark compares with, in a virtual environment of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache::Cache;
use crate::process::{heading, run};

/// Pinned, so that two runs compare with the same thing.
const PACKAGES: &[&str] = &[
    "numpy==2.4.6",
    "sentence-transformers==6.2.0",
    "tokenizers==0.23.3",
    "torch==2.13.0",
    "transformers==5.23.0",
];

/// Returns the environment's Python, making it where it is missing.
pub fn peers(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.folder("peers", &PACKAGES.join("\n"), |making| {
        heading("installing sentence-transformers to compare with, some gigabytes");
        run(Command::new("python3").args(["-m", "venv"]).arg(making))?;
        let mut pip = Command::new(making.join("bin/python"));
        pip.args(["-m", "pip", "--disable-pip-version-check", "install"])
            .args(PACKAGES);
        run(&mut pip)
    })?;
    Ok(folder.join("bin/python"))
}
