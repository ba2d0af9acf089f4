//! What to run and how long to bear with it.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use crate::{EXIT_CODE_BROKEN, probe::Probe};

/// A child to keep running. Its standard input is empty and its standard output is discarded.
#[derive(Debug, Clone)]
pub struct CommandSpec {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Environment variables in addition to this process's own.
    pub env: Vec<(OsString, OsString)>,
    /// Environment variables of this process that the child does not get.
    pub env_remove: Vec<OsString>,
    /// How to tell that the child is ready; without one it is ready when it runs.
    pub probe: Option<Probe>,
    /// Time between two probes.
    pub probe_interval: Duration,
    /// Time between a death and the next start.
    pub restart_delay: Duration,
    /// Deaths before the first readiness after which the child is given up.
    pub early_deaths_max: u32,
    /// Exit codes by which the child says that starting it again is useless.
    pub broken_exit_codes: Vec<i32>,
    /// Time between SIGTERM and SIGKILL.
    pub drain_deadline: Duration,
    /// Whether the child's standard error is passed on; its last lines are kept either way.
    pub forward_stderr: bool,
    /// Whether what a child says before one was ever ready is passed on only once one is: whoever gives up
    /// a child that never was quotes its last lines.
    pub quiet_until_ready: bool,
}

impl CommandSpec {
    /// A program without arguments and with the defaults of a local server.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            env_remove: Vec::new(),
            probe: None,
            probe_interval: Duration::from_millis(50),
            restart_delay: Duration::from_millis(200),
            early_deaths_max: 3,
            broken_exit_codes: vec![EXIT_CODE_BROKEN],
            drain_deadline: Duration::from_secs(30),
            forward_stderr: true,
            quiet_until_ready: false,
        }
    }

    /// The program as it is named in messages.
    pub(crate) fn program_name(&self) -> String {
        self.program.display().to_string()
    }
}
