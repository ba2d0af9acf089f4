//! Takes down what a process began, once the process is gone, however it ended.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What is to be swept, and how.
pub struct Sweep<'a> {
    /// What takes down the rest.
    pub command: &'a Command,
    /// A folder, which is made anew and removed in the end.
    pub scratch: &'a Path,
    /// Where the command says what it has to say. It stays open, and with it a lock on the file, until
    /// the command has ended.
    pub log: File,
}

/// Sweeps when it is dropped, or when this process ends, even by SIGKILL: then the pipe between them
/// ends. It has a session of its own, so that no signal of a terminal reaches it.
pub struct Sweeper {
    child: Child,
}

impl Sweeper {
    /// Starts one.
    pub fn start(sweep: Sweep) -> Self {
        let Sweep {
            command,
            scratch,
            log,
        } = sweep;
        // What an earlier process left there is of no more use.
        std::fs::remove_dir_all(scratch).ok();
        std::fs::create_dir(scratch).expect("a folder that was swept before");
        let both = log.try_clone().expect("a second handle of the log");
        let mut sweeper = Command::new("setsid");
        sweeper
            .args(["sh", "-c", r#"cat; rm -rf "$0"; "$@""#])
            .arg(scratch)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(both);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => sweeper.env(name, value),
                None => sweeper.env_remove(name),
            };
        }
        Self {
            child: sweeper.spawn().expect("setsid starts"),
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        // Waiting closes the pipe first.
        let swept = self.child.wait();
        if !swept.as_ref().is_ok_and(|status| status.success()) {
            eprintln!("the sweeper failed: {swept:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;
    use crate::process::until;

    /// Names the folder of the process that is killed.
    const FOLDER: &str = "MILLRACE_SWEPT_FOLDER";

    fn begun(folder: &Path) -> Sweeper {
        let mut command = Command::new("touch");
        command.arg(folder.join("swept"));
        Sweeper::start(Sweep {
            command: &command,
            scratch: &folder.join("scratch"),
            log: File::create(folder.join("log")).unwrap(),
        })
    }

    #[test]
    fn what_was_begun_is_swept_before_the_sweeper_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let sweeper = begun(folder.path());
        let lock = File::options().write(true).open(folder.path().join("log"));
        let lock = lock.unwrap();
        let there = ["scratch", "swept"].map(|name| folder.path().join(name));
        assert_eq!(there.each_ref().map(|it| it.exists()), [true, false]);
        drop(sweeper);
        assert_eq!(there.each_ref().map(|it| it.exists()), [false, true]);
        lock.try_lock().unwrap();
    }

    #[test]
    fn a_killed_process_is_swept_after() {
        let folder = tempfile::tempdir().unwrap();
        let mut killed = Command::new(std::env::current_exe().unwrap());
        let name = "sweeper::tests::it_kills_itself_with_a_sweeper_at_work";
        killed.args([name, "--exact", "--ignored"]);
        let ended = killed.env(FOLDER, folder.path()).output().unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGKILL), "{ended:?}");
        let swept = folder.path().join("swept");
        let is_swept = until(Duration::from_secs(30), || swept.exists().then_some(()));
        assert!(is_swept.is_some(), "nothing sweeps");
    }

    #[test]
    #[ignore = "it is the process that another test starts"]
    fn it_kills_itself_with_a_sweeper_at_work() {
        let folder = std::env::var_os(FOLDER).expect("the other test names a folder");
        let _sweeper = begun(Path::new(&folder));
        crate::process::send(std::process::id() as i32, libc::SIGKILL);
        std::thread::sleep(Duration::from_secs(30));
    }
}
