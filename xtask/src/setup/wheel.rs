//! Python wheels, used as archives: downloaded by pip against a pinned hash, unpacked in part.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::cache::Cache;
use crate::process::{heading, run};

/// A wheel for Linux on x86_64, pinned.
pub struct Wheel {
    /// Name in the package index.
    pub name: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: &'static str,
}

/// What to take out of a wheel: `(prefix in the wheel, what it becomes)`, both ending in `/` for a
/// folder.
pub type Picks = &'static [(&'static str, &'static str)];

/// Any Python asks for the files of this one, so that the hash holds everywhere.
pub const FOR_PYTHON: &[&str] = &[
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_25_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
];

impl Wheel {
    /// Downloads the wheel, unless an earlier run did, and unpacks `picks` into `folder`.
    pub fn unpack(&self, cache: &Cache, picks: Picks, folder: &Path) -> Result<()> {
        let file = self.download(cache)?;
        println!("    unpacking {} {}", self.name, self.version);
        unpack(&file, picks, folder)
    }

    /// Removes the download. To be called only when what was made of it stands in its place, so
    /// that a run that is stopped before goes on with the files it had.
    pub fn discard(&self, cache: &Cache) -> Result<()> {
        match fs::remove_file(self.downloaded(cache)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("a download cannot be removed")
            }
            _ => Ok(()),
        }
    }

    /// Part of a stamp: what was downloaded.
    pub fn stamp(&self) -> String {
        format!("{}=={} {}\n", self.name, self.version, self.sha256)
    }

    fn downloaded(&self, cache: &Cache) -> PathBuf {
        cache.path("downloads").join(format!("{}.whl", self.sha256))
    }

    fn download(&self, cache: &Cache) -> Result<PathBuf> {
        let done = self.downloaded(cache);
        if done.is_file() && sha256_of(&done)? == self.sha256 {
            return Ok(done);
        }
        heading(&format!("downloading {} {}", self.name, self.version));
        let incoming = cache.path("downloads/incoming");
        // pip cannot go on with a file that a stopped run left half-done.
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        fs::create_dir_all(&incoming)?;
        let requirements = incoming.join("requirements.txt");
        let Self {
            name,
            version,
            sha256,
        } = self;
        fs::write(
            &requirements,
            format!("{name}=={version} --hash=sha256:{sha256}\n"),
        )?;
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--no-deps",
        ])
        .args(FOR_PYTHON)
        .arg("--require-hashes")
        .arg("--requirement")
        .arg(&requirements)
        .arg("--dest")
        .arg(&incoming);
        run(&mut pip)?;
        let file = only_wheel(&incoming)?;
        verify(&file, sha256)?;
        fs::rename(&file, &done)?;
        fs::remove_dir_all(&incoming)?;
        Ok(done)
    }
}

/// Unpacks `picks` of the archive `file` into `folder`. Fails if a pick matches nothing.
pub fn unpack(file: &Path, picks: Picks, folder: &Path) -> Result<()> {
    let mut python = Command::new("python3");
    python
        .args(["-c", include_str!("unpack.py")])
        .arg(file)
        .arg(folder);
    for (from, to) in picks {
        python.arg(format!("{from}={to}"));
    }
    run(&mut python).with_context(|| format!("{} cannot be unpacked", file.display()))
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip left no wheel in {}", folder.display())
}

/// Fails unless `file` has this SHA-256.
pub fn verify(file: &Path, sha256: &str) -> Result<()> {
    let found = sha256_of(file)?;
    ensure!(
        found == sha256,
        "{} has SHA-256 {found}, not {sha256}",
        file.display()
    );
    Ok(())
}

/// The SHA-256 of a file, hexadecimal.
pub fn sha256_of(file: &Path) -> Result<String> {
    let mut file = File::open(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(data_encoding::HEXLOWER.encode(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}
