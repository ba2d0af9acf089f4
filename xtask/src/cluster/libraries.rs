//! Which shared libraries a program needs, as the loader of this machine finds them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// One of them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Library {
    /// Where it lies on this machine.
    pub path: PathBuf,
    /// Whether programs name it by its whole path, as they do the loader.
    pub fixed: bool,
}

/// The libraries of a program, theirs included. None for a static one.
pub fn needed(program: &Path, environment: &[(&'static str, OsString)]) -> Result<Vec<Library>> {
    let output = Command::new("ldd")
        .arg(program)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("LC_ALL", "C")
        .output()
        .context("ldd cannot be started")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !messages.contains("not a dynamic executable") {
        bail!("ldd cannot read {}: {}", program.display(), messages.trim());
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    parse(&listing).with_context(|| format!("{} cannot be packed", program.display()))
}

fn parse(listing: &str) -> Result<Vec<Library>> {
    let mut libraries = Vec::new();
    for line in listing.lines().map(str::trim) {
        let (found, fixed) = match line.split_once(" => ") {
            Some((name, "not found")) => bail!("its library {name} is not on this machine"),
            Some((_, found)) => (found, false),
            None => (line, true),
        };
        // What has no path, such as linux-vdso.so.1, comes from the kernel.
        if let Some((path, _address)) = found.split_once(" (")
            && path.starts_with('/')
        {
            let path = PathBuf::from(path);
            libraries.push(Library { path, fixed });
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(path: &str, fixed: bool) -> Library {
        Library {
            path: path.into(),
            fixed,
        }
    }

    #[test]
    fn libraries_and_the_loader_are_told_apart() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd1f5f2000)\n\
            \tlibc10.so => /opt/torch/lib/libc10.so (0x00007f8b1c000000)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f8b1be00000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f8b1c8b3000)\n";
        let expected = [
            library("/opt/torch/lib/libc10.so", false),
            library("/lib/x86_64-linux-gnu/libc.so.6", false),
            library("/lib64/ld-linux-x86-64.so.2", true),
        ];
        assert_eq!(parse(listing).unwrap(), expected);
    }

    #[test]
    fn a_static_program_has_none() {
        assert_eq!(parse("\tstatically linked\n").unwrap(), []);
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse("\tlibtorch.so => not found\n").unwrap_err();
        assert!(error.to_string().contains("libtorch.so"), "{error}");
    }
}
