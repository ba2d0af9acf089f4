//! The folder in which everything fetched or made lies. What is in it is whole: a thing is made in
//! a temporary folder beside its place, gets a stamp that says from what it was made, and is renamed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Name of the file that says from what a folder was made.
const STAMP: &str = ".millrace-stamp";

/// The cache, locked against other runs until dropped.
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

/// The cache's folder: `$MILLRACE_CACHE`, else `millrace` in `$XDG_CACHE_HOME` or `~/.cache`, where
/// the programs look for models too.
pub fn root() -> Result<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(named) = folder("MILLRACE_CACHE") {
        return std::path::absolute(named).context("MILLRACE_CACHE is no path");
    }
    if let Some(caches) = folder("XDG_CACHE_HOME") {
        return Ok(caches.join("millrace"));
    }
    let home = folder("HOME").context("neither MILLRACE_CACHE nor HOME is set")?;
    Ok(home.join(".cache/millrace"))
}

impl Cache {
    /// Opens the cache and waits until no other run works on it.
    pub fn open() -> Result<Self> {
        let root = root()?;
        fs::create_dir_all(&root).with_context(|| format!("{} cannot be made", root.display()))?;
        let lock = File::create(root.join(".lock"))?;
        if lock.try_lock().is_err() {
            println!("waiting for another cargo xtask to finish its set-up");
            lock.lock()?;
        }
        Ok(Self { root, _lock: lock })
    }

    /// A path in the cache.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Makes the folder `relative` with `make`, unless it is there and was made from `stamp`.
    /// Returns its path.
    pub fn folder(
        &self,
        relative: &str,
        stamp: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.path(relative);
        if fs::read_to_string(place.join(STAMP)).is_ok_and(|found| found == stamp) {
            return Ok(place);
        }
        let making = beside(&place, ".making");
        let old = beside(&place, ".old");
        // Left behind by a run that was stopped half-way: nobody else is at work under the lock.
        remove_all(&making)?;
        remove_all(&old)?;
        fs::create_dir_all(&making)?;
        make(&making)?;
        fs::write(making.join(STAMP), stamp)?;
        if place.exists() {
            fs::rename(&place, &old)?;
        }
        fs::rename(&making, &place)?;
        remove_all(&old)?;
        Ok(place)
    }
}

/// `<path><suffix>`, in the same folder and so on the same filesystem.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a folder if it is there.
fn remove_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}
