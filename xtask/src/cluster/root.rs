//! The files of an image: a program with its libraries, and what a C library and TLS look for.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::libraries::Library;
use super::processes::quietly;

/// Where the loader looks on its own, whatever machine the libraries are from.
const LIBRARIES: &str = "usr/lib";
/// Loaded by name when a host is looked up, where the C library does not hold them itself.
const NAME_SERVICES: [&str; 3] = ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"];
/// Authorities that TLS trusts.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

const FILES: [(&str, &str); 3] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/:/sbin/nologin\nmillrace:x:65532:65532:millrace:/tmp:/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nmillrace:x:65532:\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
];

/// Lays everything but the programs, which seldom changes.
pub fn lay_rest(root: &Path, libraries: &[Library]) -> Result<()> {
    for (name, text) in FILES {
        let file = root.join(name);
        make_parent(&file)?;
        fs::write(file, text)?;
    }
    fs::create_dir_all(root.join("tmp"))?;
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777))?;
    copy_if_there(&Path::new("/").join(AUTHORITIES), &root.join(AUTHORITIES))?;
    for Library { path, fixed } in libraries {
        if *fixed {
            copy(path, &root.join(path.strip_prefix("/")?))?;
            continue;
        }
        let name = path.file_name().context("a library without a name")?;
        copy(path, &root.join(LIBRARIES).join(name))?;
        if name == "libc.so.6" {
            for service in NAME_SERVICES {
                let place = root.join(LIBRARIES).join(service);
                copy_if_there(&path.with_file_name(service), &place)?;
            }
        }
    }
    Ok(())
}

/// Lays a program without what only debuggers read. Returns its path in the image.
pub fn lay_program(root: &Path, program: &Path) -> Result<String> {
    let name = program.file_name().context("a program without a name")?;
    let place = root.join("usr/bin").join(name);
    make_parent(&place)?;
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-debug")
        .arg("-o")
        .arg(&place)
        .arg(program);
    quietly(&mut strip)?;
    if name == "busybox" {
        let shell = root.join("bin/sh");
        make_parent(&shell)?;
        symlink("/usr/bin/busybox", shell)?;
    }
    Ok(format!("/usr/bin/{}", name.to_string_lossy()))
}

fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    if from.exists() {
        copy(from, to)
    } else {
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to).with_context(|| format!("{} cannot be copied", from.display()))?;
    Ok(())
}

fn make_parent(path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().expect("it lies in a folder"))?;
    Ok(())
}
