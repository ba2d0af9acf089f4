//! Real processes: found, started, signalled, and never left behind.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::files::repository;

/// Longest any process of these tests may take, and what it brings about; only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A built binary. `cargo xtask test` builds them before it runs the tests.
pub fn binary(name: &str) -> PathBuf {
    let beside = || repository().join("target/release");
    let folder = std::env::var_os("MILLRACE_BIN_DIR").map_or_else(beside, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --release`",
        path.display()
    );
    path
}

/// A child in its own process group, killed with all its children on drop.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output going to `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        Self { child, log }
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: i32) {
        send(self.pid(), signal);
    }

    /// Kills the process alone with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = until(PATIENCE, || self.ended());
        ended.unwrap_or_else(|| panic!("it hangs; its log:\n{}", self.log()))
    }

    /// Waits for its end, which must be a success.
    pub fn succeed(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{status}; its log:\n{}", self.log());
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap();
        // The last line may end within a character.
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A negative id means the whole group.
        send(-self.pid(), libc::SIGKILL);
        self.child.wait().ok();
    }
}

/// Sends a signal; a process that is gone already is fine.
pub fn send(pid: i32, signal: i32) {
    // SAFETY: kill takes plain numbers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) };
}

/// Polls until `probe` gives something or `patience` is over.
pub fn until<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ids of the processes whose parent is `parent`.
pub fn children(parent: i32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|&pid| parent_of(pid) == Some(parent)).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; the fields after it are plain.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}
