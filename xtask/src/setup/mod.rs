//! Fetches what is pinned, and makes of it what the build, the tests and the programs look for.

mod kubernetes;
mod libtorch;
mod model;
mod peers;
mod wheel;

use std::process::Command;

use anyhow::{Context, Result};

pub use kubernetes::{KUBERNETES, kubernetes};
pub use libtorch::Libtorch;
pub use model::MODEL;
pub use peers::{openai, peers};
pub use wheel::sha256_of;

use crate::cache::Cache;
use crate::process::{heading, run};

/// The S3 server of the tests, below the cache.
pub const VERSITYGW: &str = "versitygw/versitygw";

/// Everything that building and running needs: libtorch and the model.
pub fn for_running(cache: &Cache) -> Result<Libtorch> {
    model::set_up(cache)?;
    libtorch::set_up(cache)
}

/// The S3 server of the tests, built from source; the Go proxy and its checksum database pin it.
pub fn versitygw(cache: &Cache) -> Result<()> {
    const MODULE: &str = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";
    let (folder, _) = VERSITYGW.split_once('/').expect("it lies in a folder");
    cache.folder(folder, MODULE, |making| {
        heading(&format!("building {MODULE}, some minutes"));
        let go = crate::needs::go().context("go is missing")?;
        run(Command::new(go)
            .args(["install", MODULE])
            .env("GOBIN", making))
    })?;
    Ok(())
}
