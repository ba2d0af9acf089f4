//! Images as archives in the format of `docker save`, which every container runtime reads.
//!
//! A folder becomes a layer with the same digest each time, so that a runtime that has a layer does
//! not unpack it again.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::processes::quietly;
use crate::setup::sha256_of;

/// What an image runs as: no user of this machine, and the one that charts name.
const USER: &str = "65532:65532";

/// Packs the folders `layers` of `folder`, lowest first, and passes the archive to `import` on its
/// standard input.
pub fn pack(
    reference: &str,
    entrypoint: &[String],
    folder: &Path,
    layers: &[&str],
    import: &mut Command,
) -> Result<()> {
    let mut files = vec!["manifest.json".to_owned(), "config.json".to_owned()];
    let mut digests = Vec::new();
    for layer in layers {
        let name = format!("{layer}.tar");
        tar_layer(&folder.join(layer), &folder.join(&name))?;
        digests.push(format!("sha256:{}", sha256_of(&folder.join(&name))?));
        files.push(name);
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": USER,
            "Env": ["PATH=/usr/bin:/bin"],
            "Entrypoint": entrypoint,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [reference],
        "Layers": &files[2..],
    }]);
    fs::write(folder.join("config.json"), config.to_string())?;
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    let mut tar = Command::new("tar")
        .args(["--create", "--directory"])
        .arg(folder)
        .args(&files)
        .stdout(Stdio::piped())
        .spawn()
        .context("tar cannot be started")?;
    let archive = tar.stdout.take().expect("it is piped");
    let output = import
        .stdin(archive)
        .output()
        .context("the image cannot be passed on")?;
    ensure!(
        output.status.success() && tar.wait()?.success(),
        "{reference} cannot be imported: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn tar_layer(folder: &Path, file: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--mtime=@0"])
        .args(["--owner=0", "--group=0", "--numeric-owner"])
        // Files of a user who keeps them from others are to be read by the image's.
        .arg("--mode=a+rX")
        .arg("--file")
        .arg(file)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    quietly(&mut tar).map(drop)
}
