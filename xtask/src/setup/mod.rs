//! Fetches what is pinned, and makes of it what the build, the tests and the programs look for.

mod kubernetes;
mod libtorch;
mod model;
mod peers;
mod wheel;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

pub use kubernetes::{KUBERNETES, kubernetes};
pub use libtorch::Libtorch;
pub use model::MODEL;
pub use peers::peers;
pub use wheel::sha256_of;

use crate::cache::Cache;
use crate::process::{heading, run};

/// The S3 server of the tests, below the cache.
pub const VERSITYGW: &str = "bin/versitygw";

/// Everything that building and running needs: libtorch and the model.
pub fn for_running(cache: &Cache) -> Result<Libtorch> {
    model::set_up(cache)?;
    libtorch::set_up(cache)
}

/// The S3 server of the tests, built from source; the Go proxy and its checksum database pin it.
pub fn versitygw(cache: &Cache) -> Result<()> {
    const MODULE: &str = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";
    let place = cache.path(VERSITYGW);
    if place.is_file() {
        return Ok(());
    }
    heading(&format!("building {MODULE}, some minutes"));
    let making = cache.path("bin.making");
    fs::create_dir_all(&making)?;
    let go = crate::needs::go().context("go is missing")?;
    run(Command::new(go)
        .args(["install", MODULE])
        .env("GOBIN", &making))?;
    fs::create_dir_all(place.parent().expect("it lies in a folder"))?;
    fs::rename(making.join("versitygw"), &place)?;
    fs::remove_dir_all(making)?;
    Ok(())
}
