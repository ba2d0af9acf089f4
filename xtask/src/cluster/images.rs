//! The project's programs, and the servers that tests need beside them, as images in the cluster.
//! There is no registry: manifests name them with `imagePullPolicy: Never`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::archive::pack;
use super::libraries::{Library, needed};
use super::names::Cluster;
use super::processes::quietly;
use super::root::{lay_program, lay_rest};
use super::up;
use super::wait::until;
use crate::cache::Cache;
use crate::process::heading;
use crate::setup;
use crate::tasks::programs;

/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "localhost/millrace/pause:dev";
/// Where the stamp of an image is kept: on the image, so that both are there or neither.
const STAMP: &str = "millrace.dev/stamp";
/// To be changed with the way in which images are made.
const FORMAT: &str = "1";

/// An image to make.
struct Image {
    /// The last part of its reference.
    name: &'static str,
    /// The program that it runs, and others beside it.
    programs: Vec<PathBuf>,
    /// What the program is started with before the arguments of a pod.
    arguments: &'static [&'static str],
}

impl Image {
    /// One whose pods give all arguments.
    fn of(name: &'static str, programs: Vec<PathBuf>) -> Self {
        Self {
            name,
            programs,
            arguments: &[],
        }
    }
}

/// Puts all images into a cluster, save those that are there already.
pub fn load_all(cluster: &Cluster) -> Result<()> {
    ensure!(
        up::is_up(cluster),
        "the cluster {} is not up: cargo xtask cluster up --name {0}",
        cluster.name()
    );
    let (environment, s3) = {
        let cache = Cache::open()?;
        setup::versitygw(&cache)?;
        (
            setup::for_running(&cache)?.environment(),
            cache.path(setup::VERSITYGW),
        )
    };
    let built = programs(&environment)?;
    heading("loading images");
    for (name, program) in [
        ("worker", "millrace-worker"),
        ("inference-server", "millrace-inference-server"),
        ("operator", "millrace-operator"),
    ] {
        let program = built.join(program);
        if program.is_file() {
            load(cluster, &Image::of(name, vec![program]), &environment)?;
        } else {
            println!(
                "    {name}: left out, since {} is not built",
                program.display()
            );
        }
    }
    let redis = ["redis-server", "redis-cli", "busybox"].map(installed);
    let redis = redis.into_iter().collect::<Result<_>>()?;
    load(cluster, &Image::of("redis", redis), &[])?;
    let s3 = vec![s3, installed("busybox")?];
    load(cluster, &Image::of("s3", s3), &[])
}

/// Puts the image into a starting cluster without which no pod can start.
pub fn load_pause(cluster: &Cluster) -> Result<()> {
    until(
        "containerd",
        &cluster.log("containerd"),
        std::time::Duration::from_secs(30),
        || Ok(quietly(ctr(cluster).arg("version")).is_ok()),
    )?;
    let pause = Image {
        name: "pause",
        programs: vec![installed("busybox")?],
        arguments: &["sleep", "2147483647"],
    };
    load(cluster, &pause, &[])
}

fn load(cluster: &Cluster, image: &Image, environment: &[(&'static str, OsString)]) -> Result<()> {
    let started = Instant::now();
    let Image {
        name,
        programs,
        arguments,
    } = image;
    let reference = format!("localhost/millrace/{name}:dev");
    let mut libraries = Vec::new();
    for program in programs {
        libraries.extend(needed(program, environment)?);
    }
    libraries.sort();
    libraries.dedup();
    let stamp = stamp(image, &libraries)?;
    if is_loaded(cluster, &reference, &stamp)? {
        println!("    {reference}: unchanged");
        return Ok(());
    }
    let folder = cluster.path("images").join(name);
    lay_rest(&folder.join("rest"), &libraries)?;
    let mut entrypoint = Vec::new();
    for program in programs {
        entrypoint.push(lay_program(&folder.join("programs"), program)?);
    }
    entrypoint.truncate(1);
    entrypoint.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let mut import = ctr(cluster);
    import.args(["images", "import", "-"]);
    pack(
        &reference,
        &entrypoint,
        &folder,
        &["rest", "programs"],
        &mut import,
    )?;
    let label = format!("{STAMP}={stamp}");
    quietly(ctr(cluster).args(["images", "label", &reference, &label]))?;
    std::fs::remove_dir_all(folder)?;
    println!(
        "    {reference}: loaded in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// From what an image is made.
fn stamp(image: &Image, libraries: &[Library]) -> Result<String> {
    let Image {
        name,
        programs,
        arguments,
    } = image;
    let mut made_of = format!("{FORMAT} {name} {arguments:?}");
    let libraries = libraries.iter().map(|library| &library.path);
    for file in programs.iter().chain(libraries) {
        made_of += &format!(" {} {}", file.display(), setup::sha256_of(file)?);
    }
    Ok(data_encoding::HEXLOWER.encode(&Sha256::digest(made_of)))
}

fn is_loaded(cluster: &Cluster, reference: &str, stamp: &str) -> Result<bool> {
    let filter = format!("name=={reference},labels.\"{STAMP}\"=={stamp}");
    let listing = quietly(ctr(cluster).args(["images", "list", "--quiet", &filter]))?;
    Ok(!listing.trim().is_empty())
}

/// A call of containerd's client for the images that Kubernetes sees.
fn ctr(cluster: &Cluster) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address")
        .arg(cluster.containerd_socket())
        .args(["--namespace", "k8s.io"]);
    ctr
}

/// The file of a program that is on the search path.
fn installed(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(program));
    match found.into_iter().find(|path| Path::new(path).is_file()) {
        Some(path) => Ok(path),
        None => bail!("{program} is not installed"),
    }
}
