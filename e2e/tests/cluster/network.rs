//! The network in which a cluster is reached: a namespace of its own, or the one that this machine is in.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A network.
#[derive(Debug, Clone)]
pub enum Network {
    /// A network namespace, by its file.
    Namespace(PathBuf),
    /// The network of this process.
    Machine,
}

impl Network {
    /// A call of a program in it.
    pub fn command(&self, program: &Path) -> Command {
        match self {
            Self::Namespace(file) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net={}", file.display()))
                    .arg(program);
                command
            }
            Self::Machine => Command::new(program),
        }
    }

    /// What `act` gives where it is done in this network.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            // A thread of its own, since threads cannot go back.
            let acting = scope.spawn(|| {
                self.enter();
                act()
            });
            acting
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Brings this thread there.
    fn enter(&self) {
        let Self::Namespace(file) = self else { return };
        let namespace = File::open(file).expect("the network is there");
        // SAFETY: it takes a descriptor that is open and touches no memory of ours.
        let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        let error = std::io::Error::last_os_error();
        assert_eq!(entered, 0, "{} cannot be entered: {error}", file.display());
    }
}
