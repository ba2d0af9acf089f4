//! The tasks that consist of other people's commands: `setup` and `test`.

mod skips;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache};
use crate::needs::{self, Task};
use crate::process::{heading, output, repository, run, shown, succeeds};
use crate::setup::{self, Libtorch};
use skips::Notes;

/// `cargo xtask setup`.
pub fn setup() -> Result<()> {
    needs::check(Task::Test)?;
    let cache = Cache::open()?;
    let libtorch = setup::for_running(&cache)?;
    setup::versitygw(&cache)?;
    setup::openai(&cache)?;
    println!(
        "everything is in {}; to call cargo yourself:",
        cache.path("").display()
    );
    for (name, value) in libtorch.environment() {
        println!("  export {name}={}", value.display());
    }
    Ok(())
}

/// `cargo xtask models`: the classifiers that the examples look for, trained where that was not done.
pub fn models(size: setup::Size) -> Result<()> {
    needs::check(Task::Bench)?;
    let cache = Cache::open()?;
    let trained = setup::classifiers(&cache)?;
    heading(&format!("growing them to the size of {}", size.name));
    let (python, examples) = (setup::peers(&cache)?, repository().join("examples"));
    setup::grow(&python, &trained, size, &setup::CLASSIFIERS, &examples)?;
    println!(
        "how right they are is in {}",
        trained.join("accuracy.json").display()
    );
    Ok(())
}

/// `cargo xtask test`: what a change must pass.
pub fn test() -> Result<()> {
    let started = Instant::now();
    needs::check(Task::Test)?;
    let libtorch = {
        let cache = Cache::open()?;
        setup::versitygw(&cache)?;
        setup::openai(&cache)?;
        setup::promtool(&cache);
        // Without the right to make a cluster too: an API server alone and helm take none.
        setup::kubernetes(&cache)?;
        setup::for_running(&cache)?
    };
    let environment = environment(&libtorch)?;
    let step = |arguments: &[&str]| {
        let mut command = cargo(&environment, arguments);
        heading(&shown(&command));
        run(&mut command)
    };
    step(&["fmt", "--all", "--check"])?;
    step(&[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    if succeeds("cargo", &["deny", "--version"]) {
        step(&["deny", "--offline", "check", "bans", "licenses", "sources"])?;
    } else {
        println!("\ncargo-deny is not installed: deny.toml is not checked here");
    }
    // A test reads the programs themselves, so they are built before it runs.
    step(BUILD)?;
    let mut command = cargo(
        &environment,
        &["test", "--release", "--workspace", "--no-fail-fast"],
    );
    heading(&shown(&command));
    let notes = Notes::begin()?;
    command.env(skips::SKIPPED_TESTS, notes.file());
    let (succeeded, counts) = counted(&mut command)?;
    let skipped = notes.read()?;
    println!("\ntook {}", spoken(started.elapsed().as_secs()));
    if succeeded {
        println!("next: `cargo xtask demo` shows it at work, `cargo xtask bench` measures it");
    }
    for line in skips::told(&skipped) {
        println!("{line}");
    }
    println!("{}", counts.closing_line(skipped.len() as u64));
    if !succeeded {
        bail!("the tests failed; the output above says which");
    }
    Ok(())
}

/// Builds the programs. All of the workspace, as the tests build it: another selection would compile
/// some dependencies once more, with other features.
pub const BUILD: &[&str] = &["build", "--release", "--workspace"];

/// Makes cargo look at every source again if another checkout was built last. Checkouts share what
/// is compiled, and cargo tells a changed source by its time, which an older checkout's lacks.
fn claim_the_build(root: &Path) -> Result<()> {
    let (stamp, ours) = (root.join("checkout"), repository());
    let last = std::fs::read(&stamp).unwrap_or_default();
    if last == ours.as_os_str().as_encoded_bytes() {
        return Ok(());
    }
    let mut listing = Command::new("git");
    listing
        .args(["ls-files", "*.rs", "*Cargo.toml", "*.lua"])
        .current_dir(&ours);
    let now = std::time::SystemTime::now();
    for source in output(&mut listing)?.lines() {
        let file = std::fs::File::options()
            .append(true)
            .open(ours.join(source));
        file.and_then(|file| file.set_modified(now))
            .with_context(|| format!("{source} cannot be touched"))?;
    }
    std::fs::write(stamp, ours.as_os_str().as_encoded_bytes())?;
    Ok(())
}

/// What cargo and the programs find in their environment. Every task that builds asks for it first.
pub fn environment(libtorch: &Libtorch) -> Result<Vec<(&'static str, OsString)>> {
    let root = cache::root()?;
    claim_the_build(&root)?;
    let mut environment = libtorch.environment();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = vec![root.join("bin"), root.join(setup::PROMTOOL)];
    folders.extend(std::env::split_paths(&path));
    environment.push((
        "PATH",
        std::env::join_paths(folders).context("PATH is malformed")?,
    ));
    environment.push(("MILLRACE_MODEL_CACHE", root.join("models").into()));
    let openai = root.join("openai/bin/python");
    environment.push(("MILLRACE_OPENAI_PYTHON", openai.into()));
    environment.push(("MILLRACE_VERSITYGW", root.join(setup::VERSITYGW).into()));
    Ok(environment)
}

/// The folder of built programs. Cargo is asked for it, because users may have moved it.
pub fn programs(environment: &[(&'static str, OsString)]) -> Result<PathBuf> {
    let mut metadata = cargo(
        environment,
        &["metadata", "--format-version=1", "--no-deps"],
    );
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut metadata)?)?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo names no target directory")?;
    Ok(Path::new(target).join("release"))
}

/// A call of cargo in the repository. What the cargo that runs this program told it about its own
/// package is taken out, or build scripts would see a changed environment and run again.
pub fn cargo(environment: &[(&'static str, OsString)], arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(repository());
    for (name, _) in std::env::vars_os() {
        let shown = name.to_string_lossy();
        if shown.starts_with("CARGO_PKG_") || shown.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

/// Tests by how they ended. Those that were skipped passed, for all that libtest knows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    /// Adds what a closing line of a test binary says; other lines say nothing.
    fn add(&mut self, line: &str) {
        let Some((_, numbers)) = line.split_once("test result: ") else {
            return;
        };
        let before = |word: &str| {
            let (head, _) = numbers.split_once(word)?;
            head.rsplit([' ', '.'])
                .find(|it| !it.is_empty())?
                .parse::<u64>()
                .ok()
        };
        self.passed += before(" passed").unwrap_or(0);
        self.failed += before(" failed").unwrap_or(0);
    }

    /// What the run comes to, where so many tests say that they were skipped.
    fn closing_line(&self, skipped: u64) -> String {
        let Self { passed, failed } = self;
        let passed = passed.saturating_sub(skipped);
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Runs tests with all their output on this terminal, and counts them. Returns whether all passed.
fn counted(command: &mut Command) -> Result<(bool, Counts)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo cannot be started")?;
    let printed = child.stdout.take().expect("it is piped");
    let mut counts = Counts::default();
    let mut stdout = std::io::stdout().lock();
    for line in BufReader::new(printed).split(b'\n') {
        let line = line?;
        counts.add(&String::from_utf8_lossy(&line));
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
        stdout.flush()?;
    }
    Ok((child.wait()?.success(), counts))
}

/// `3 min 12 s`
fn spoken(seconds: u64) -> String {
    format!("{} min {} s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_test_binaries_are_summed() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        counts.add("test result: FAILED. 3 passed; 2 failed; 0 ignored");
        counts.add("test said_nothing ... ok");
        assert_eq!(
            counts,
            Counts {
                passed: 15,
                failed: 2
            }
        );
        assert_eq!(counts.closing_line(4), "11 passed, 2 failed, 4 skipped");
    }
}
