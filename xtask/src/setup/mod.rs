//! Fetches what is pinned, and makes of it what the build, the tests and the programs look for.

mod classifiers;
mod kubernetes;
mod libtorch;
mod model;
mod peers;
mod wheel;

use std::process::Command;

use anyhow::{Context, Result};

pub use classifiers::{BERT_BASE, CLASSIFIERS, MINILM, Size, classifiers, grow};
pub use kubernetes::{KUBERNETES, kubernetes};
pub use libtorch::Libtorch;
pub use model::MODEL;
pub use peers::{openai, peers};
pub use wheel::sha256_of;

use crate::cache::Cache;
use crate::process::{heading, installed, run};

/// The S3 server of the tests, below the cache.
pub const VERSITYGW: &str = "versitygw/versitygw";

/// The load generators of the benchmark, below the cache: as fast as so many clients are answered, and at
/// a rate that waits for no answer.
pub const HEY: &str = "hey/hey";
/// See [`HEY`].
pub const VEGETA: &str = "vegeta/vegeta";

/// Everything that building and running needs: libtorch and the model.
pub fn for_running(cache: &Cache) -> Result<Libtorch> {
    model::set_up(cache)?;
    libtorch::set_up(cache)
}

/// The S3 server of the tests, built from source; the Go proxy and its checksum database pin it.
pub fn versitygw(cache: &Cache) -> Result<()> {
    let module = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";
    of_go(cache, VERSITYGW, module)
}

/// The load generators of the benchmark, from source in the same way.
pub fn load_generators(cache: &Cache) -> Result<()> {
    of_go(cache, HEY, "github.com/rakyll/hey@v0.1.4")?;
    of_go(cache, VEGETA, "github.com/tsenart/vegeta/v12@v12.13.0")
}

/// What checks the alerts, below the cache.
pub const PROMTOOL: &str = "prometheus/usr/bin";

/// What checks the alerts, where it is not installed and Debian's package can be had. The package is
/// unpacked and not installed: installed, it would start a server.
pub fn promtool(cache: &Cache) {
    let can = installed("apt-get") && installed("dpkg-deb");
    if installed("promtool") || !can {
        return;
    }
    let unpacked = cache.folder("prometheus", "Debian's", |making| {
        heading("fetching promtool");
        let patience = "Acquire::http::Timeout=20";
        let download = ["apt-get", "-o", patience, "download", "prometheus"];
        let unpack = "dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb";
        for command in [&download[..], &["sh", "-c", unpack]] {
            run(Command::new(command[0])
                .args(&command[1..])
                .current_dir(making))?;
        }
        Ok(())
    });
    if let Err(error) = unpacked {
        println!("there is no promtool: {error:#}");
    }
}

fn of_go(cache: &Cache, place: &str, module: &str) -> Result<()> {
    let (folder, _) = place.split_once('/').expect("it lies in a folder");
    cache.folder(folder, module, |making| {
        heading(&format!("building {module}, some minutes"));
        let go = crate::needs::go().context("go is missing")?;
        run(Command::new(go)
            .args(["install", module])
            .env("GOBIN", making))
    })?;
    Ok(())
}
