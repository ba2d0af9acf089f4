//! Reads what this machine has. What it has not is empty, never an error.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Files of documentation that are read: enough for some 20,000 passages.
const FILES_MAX: usize = 6_000;

/// What `apt-cache dumpavail` prints.
pub fn packages() -> String {
    let output = Command::new("apt-cache")
        .arg("dumpavail")
        .stderr(Stdio::null())
        .output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

/// Manual pages and the readable files of `/usr/share/doc`, end to end.
pub fn documentation() -> Result<String> {
    let mut files = BTreeSet::new();
    for section in ["man1", "man5", "man7", "man8"] {
        collect(&Path::new("/usr/share/man").join(section), 0, &mut files);
    }
    collect(Path::new("/usr/share/doc"), 1, &mut files);
    let files: Vec<PathBuf> = files.into_iter().collect();
    let count = files.len().min(FILES_MAX);
    let mut documentation = String::new();
    let evenly: Vec<&PathBuf> = (0..count)
        .map(|index| &files[index * files.len() / count])
        .collect();
    for some in evenly.chunks(200) {
        // With -f, gzip passes on what is not compressed.
        let output = Command::new("gzip")
            .arg("-dcf")
            .args(some)
            .stderr(Stdio::null())
            .output()
            .context("gzip cannot be started")?;
        documentation.push_str(&String::from_utf8_lossy(&output.stdout));
        documentation.push_str("\n\n");
    }
    Ok(documentation)
}

/// Adds the readable files of `folder` and of `depth` levels below it.
fn collect(folder: &Path, depth: usize, files: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        let manual = folder.starts_with("/usr/share/man");
        // Licences and changelogs are the same words in every package.
        let readable =
            name.starts_with("README") || name.starts_with("NEWS") || name.ends_with(".txt");
        if kind.is_dir() && depth > 0 {
            collect(&entry.path(), depth - 1, files);
        } else if kind.is_file() && (manual || readable) {
            files.insert(entry.path());
        }
    }
}
