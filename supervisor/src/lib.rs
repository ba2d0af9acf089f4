//! Keeps one child process running.
//!
//! The child is restarted within a second when it dies, always after the same short delay: a
//! worker that bisects a batch which kills the server must not meet a growing back-off. It is
//! given up when it says itself that restarting is useless ([`EXIT_CODE_BROKEN`]) or dies again
//! and again before it was ever ready. It never outlives the process that supervises it.
//!
//! All of it happens on one thread of its own: Linux ties a child's death signal to the *thread*
//! that spawned it, so that thread must live as long as the child.

mod forward;
mod probe;
mod spec;
mod tail;
mod watch;

use std::{sync::Arc, thread::JoinHandle};

use tokio::sync::{mpsc, watch as status};

pub use crate::{
    probe::{Address, Probe},
    spec::CommandSpec,
};

/// Exit code by which a child says that it is broken and that starting it again is useless.
pub const EXIT_CODE_BROKEN: i32 = 3;

/// Starts children.
pub struct Supervisor;

impl Supervisor {
    /// Starts the child and keeps it running until [`Handle::stop`] is called or the handle is
    /// dropped. A child that cannot even be started is a failure like any other.
    pub fn start(spec: CommandSpec) -> std::io::Result<Handle> {
        let (status_sender, status) = status::channel(Status::default());
        // One stop is all that is ever said.
        let (stop, stopped) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || {
                runtime.block_on(watch::keep_running(&spec, &status_sender, stopped));
            })?;
        Ok(Handle {
            status,
            stop,
            thread: Some(thread),
        })
    }
}

/// What is known of the child.
#[derive(Debug, Clone, Default)]
struct Status {
    pid: Option<u32>,
    restarts: u64,
    /// Whether the running child has been ready.
    ready: bool,
    /// Set once, when the child is not started again.
    end: Option<End>,
}

/// Why the child is not started again.
#[derive(Debug, Clone)]
enum End {
    Stopped,
    Failed(Arc<Failure>),
}

/// Why the child was given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The program cannot be started at all.
    #[error("{program} cannot be started: {message}")]
    NotStarted {
        /// The program.
        program: String,
        /// What the operating system said.
        message: String,
    },
    /// The child said that restarting it is useless.
    #[error("{program} cannot run{}", quote(stderr))]
    Broken {
        /// The program.
        program: String,
        /// The last lines it wrote to its standard error.
        stderr: String,
    },
    /// The child died too often before it was ever ready.
    #[error(
        "{program} died {deaths} times before it was ready, at last with {status}{}",
        quote(stderr)
    )]
    NeverReady {
        /// The program.
        program: String,
        /// How often it died.
        deaths: u32,
        /// How it ended the last time.
        status: String,
        /// The last lines it wrote to its standard error.
        stderr: String,
    },
    /// The supervising thread is gone.
    #[error("the child was stopped")]
    Stopped,
}

fn quote(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!("; its last lines:\n{stderr}")
    }
}

/// A supervised child. Dropping the handle stops the child as [`Handle::stop`] does, without
/// waiting for it.
#[derive(Debug)]
pub struct Handle {
    status: status::Receiver<Status>,
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Process id of the running child; `None` between two.
    pub fn pid(&self) -> Option<u32> {
        self.status.borrow().pid
    }

    /// How often the child was started again.
    pub fn restarts(&self) -> u64 {
        self.status.borrow().restarts
    }

    /// Whether the running child has answered the probe since it was started.
    pub fn is_ready(&self) -> bool {
        self.status.borrow().ready
    }

    /// Waits until the running child is ready. Without a probe it is so at once.
    pub async fn ready(&self) -> Result<(), Failure> {
        let mut status = self.status.clone();
        let settled = status
            .wait_for(|status| status.ready || status.end.is_some())
            .await;
        match settled.map(|status| status.end.clone()) {
            Ok(None) => Ok(()),
            Ok(Some(End::Failed(failure))) => Err((*failure).clone()),
            Ok(Some(End::Stopped)) | Err(_) => Err(Failure::Stopped),
        }
    }

    /// Waits until the child is given up and says why; a child that is stopped on purpose gives
    /// [`Failure::Stopped`].
    pub async fn failed(&self) -> Failure {
        let mut status = self.status.clone();
        let ended = status.wait_for(|status| status.end.is_some()).await;
        match ended.ok().and_then(|status| status.end.clone()) {
            Some(End::Failed(failure)) => (*failure).clone(),
            None | Some(End::Stopped) => Failure::Stopped,
        }
    }

    /// Sends SIGTERM, waits for the drain deadline, then kills, and returns when the child is gone.
    pub async fn stop(mut self) {
        let _ = self.stop.try_send(());
        let mut status = self.status.clone();
        let _ = status.wait_for(|status| status.end.is_some()).await;
        if let Some(thread) = self.thread.take() {
            // The thread has nothing left to do once the end is known.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
    }
}
