//! The supervising loop: start, probe, wait, restart.

use std::{
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{CommandSpec, End, Failure, Status, forward::Forward, tail::Tail};

/// How long the last lines of a dead child may take to arrive; a grandchild may hold the pipe open.
const STDERR_DEADLINE: Duration = Duration::from_millis(200);

/// Keeps the child running until `stopped` says something or its sender is gone. Must run on a
/// thread that lives as long as the child.
pub async fn keep_running(
    spec: &CommandSpec,
    status: &watch::Sender<Status>,
    mut stopped: mpsc::Receiver<()>,
) {
    let (forward, flushed) = match spec
        .forward_stderr
        .then(|| Forward::start(std::io::stderr(), spec.quiet_until_ready))
    {
        Some(Ok((forward, flushed))) => (Some(forward), Some(flushed)),
        Some(Err(error)) => {
            tracing::warn!(%error, "the child's standard error cannot be passed on");
            (None, None)
        }
        None => (None, None),
    };
    let end = run_until_end(spec, status, &mut stopped, forward).await;
    if let Some(flushed) = flushed {
        flushed.wait().await;
    }
    status.send_modify(|status| {
        status.pid = None;
        status.ready = false;
        status.end = Some(end);
    });
}

async fn run_until_end(
    spec: &CommandSpec,
    status: &watch::Sender<Status>,
    stopped: &mut mpsc::Receiver<()>,
    forward: Option<Forward>,
) -> End {
    let program = spec.program_name();
    let mut early_deaths = 0;
    let mut ever_ready = false;
    loop {
        let (child, stderr) = match spawn(spec, forward.clone()) {
            Ok(spawned) => spawned,
            Err(error) => {
                let message = error.to_string();
                return End::Failed(Arc::new(Failure::NotStarted { program, message }));
            }
        };
        status.send_modify(|status| status.pid = child.id());
        let ran = run_one(spec, child, status, stopped, forward.as_ref()).await;
        // Also what a child says while it is stopped is passed on.
        let stderr = stderr.finish().await;
        let exit = match ran {
            Ran::Stopped => return End::Stopped,
            Ran::Died(exit) => exit,
        };
        ever_ready |= status.borrow().ready;
        if exit
            .code()
            .is_some_and(|code| spec.broken_exit_codes.contains(&code))
        {
            return End::Failed(Arc::new(Failure::Broken { program, stderr }));
        }
        if !ever_ready {
            early_deaths += 1;
            if early_deaths >= spec.early_deaths_max {
                let (deaths, status) = (early_deaths, exit.to_string());
                let failure = Failure::NeverReady {
                    program,
                    deaths,
                    status,
                    stderr,
                };
                return End::Failed(Arc::new(failure));
            }
        }
        tracing::warn!(%program, %exit, "the child died and is started again");
        status.send_modify(|status| {
            status.pid = None;
            status.ready = false;
            status.restarts += 1;
        });
        tokio::select! {
            () = tokio::time::sleep(spec.restart_delay) => {}
            _ = stopped.recv() => return End::Stopped,
        }
    }
}

enum Ran {
    Died(ExitStatus),
    Stopped,
}

/// Waits for the child to die or to be stopped; probes it meanwhile.
async fn run_one(
    spec: &CommandSpec,
    mut child: Child,
    status: &watch::Sender<Status>,
    stopped: &mut mpsc::Receiver<()>,
    forward: Option<&Forward>,
) -> Ran {
    let probing = async {
        if let Some(probe) = &spec.probe {
            while !probe.is_ready().await {
                tokio::time::sleep(spec.probe_interval).await;
            }
        }
        status.send_modify(|status| status.ready = true);
        if let Some(forward) = forward {
            forward.release();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // A child that is already dead was never ready, whoever answered the probe.
        biased;
        exit = child.wait() => {
            let exit = exit.expect("a child of this process can be waited for");
            Ran::Died(exit)
        }
        _ = stopped.recv() => {
            stop(&mut child, spec.drain_deadline).await;
            Ran::Stopped
        }
        () = probing => unreachable!("probing goes on until the child ends"),
    }
}

async fn stop(child: &mut Child, drain_deadline: Duration) {
    // Only this task waits for the child, so its id cannot have gone to another process.
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: `kill` takes no pointers; the child exists until it is waited for.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    if tokio::time::timeout(drain_deadline, child.wait())
        .await
        .is_err()
    {
        tracing::warn!("the child did not end within {drain_deadline:?} and is killed");
        let _ = child.kill().await;
    }
}

/// The reader of one child's standard error.
struct StderrReader {
    tail: Tail,
    task: JoinHandle<()>,
}

impl StderrReader {
    /// The last lines of a dead child.
    async fn finish(mut self) -> String {
        if tokio::time::timeout(STDERR_DEADLINE, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
        self.tail.text()
    }
}

fn spawn(spec: &CommandSpec, forward: Option<Forward>) -> std::io::Result<(Child, StderrReader)> {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A terminal sends Ctrl-C to its whole process group. The parent decides when the child
        // stops, so the child is in a group of its own.
        .process_group(0)
        .kill_on_drop(true);
    for name in &spec.env_remove {
        command.env_remove(name);
    }
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes only system calls that are
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || die_with_parent(parent));
    }
    let mut child = command.spawn()?;
    let stderr = child.stderr.take().expect("standard error is piped");
    let tail = Tail::default();
    let task = tokio::spawn(tail.clone().read(stderr, forward));
    Ok((child, StderrReader { tail, task }))
}

/// Asks the kernel to kill this process when the thread that spawned it ends.
fn die_with_parent(parent: u32) -> std::io::Result<()> {
    // SAFETY: both calls take no pointers.
    let parent_is_gone = unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // The parent may have died between fork and prctl; then no signal would ever come.
        libc::getppid() as u32 != parent
    };
    if parent_is_gone {
        Err(std::io::Error::from_raw_os_error(libc::ESRCH))
    } else {
        Ok(())
    }
}
