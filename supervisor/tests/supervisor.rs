//! Supervises real processes: `sh` and `sleep`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use millrace_supervisor::{Address, CommandSpec, Failure, Probe, Supervisor};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixListener,
};

fn shell(script: &str) -> CommandSpec {
    let mut spec = CommandSpec::new("/bin/sh");
    spec.args = vec!["-c".into(), script.into()];
    spec.forward_stderr = false;
    spec.restart_delay = Duration::from_millis(20);
    spec
}

fn is_running(pid: u32) -> bool {
    // A process that is dead but not waited for has the state Z.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .trim_start()
        .chars()
        .next();
    state.is_some_and(|state| state != 'Z')
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: `kill` takes no pointers.
    unsafe { libc::kill(pid as i32, signal) };
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < give_up, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_killed_child_is_started_again_under_another_pid() {
    let handle = Supervisor::start(shell("exec sleep 1000")).unwrap();
    handle.ready().await.unwrap();
    for restart in 1..=3 {
        let pid = handle.pid().unwrap();
        kill(pid, libc::SIGKILL);
        until("restarted", || {
            handle.restarts() == restart && handle.pid().is_some()
        })
        .await;
        handle.ready().await.unwrap();
        assert_ne!(handle.pid(), Some(pid));
    }
    handle.stop().await;
}

#[tokio::test]
async fn stop_lets_the_child_drain() {
    let folder = tempfile::tempdir().unwrap();
    let drained = folder.path().join("drained");
    let trapped = folder.path().join("trapped");
    let script = format!(
        "trap 'touch {}; exit 0' TERM; touch {}; while :; do sleep 0.01; done",
        drained.display(),
        trapped.display(),
    );
    let handle = Supervisor::start(shell(&script)).unwrap();
    until("the trap is set", || trapped.exists()).await;
    let pid = handle.pid().unwrap();
    handle.stop().await;
    assert!(drained.exists());
    assert!(!is_running(pid));
}

#[tokio::test]
async fn the_last_words_of_a_stopped_child_are_passed_on() {
    // This test's own binary is the supervisor, because it is its standard error that is looked at.
    let supervisor = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "stop_for_another_test",
            "--ignored",
            "--nocapture",
        ])
        .env("STOPPED_CHILD", "1")
        .output();
    let said = supervisor.await.unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("last words"), "{said}");
}

#[tokio::test]
#[ignore = "run by the_last_words_of_a_stopped_child_are_passed_on in a process of its own"]
async fn stop_for_another_test() {
    if std::env::var_os("STOPPED_CHILD").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let trapped = folder.path().join("trapped");
    let script = format!(
        "trap 'echo last words >&2; exit 0' TERM; touch {}; while :; do sleep 0.01; done",
        trapped.display()
    );
    let mut spec = shell(&script);
    spec.forward_stderr = true;
    let handle = Supervisor::start(spec).unwrap();
    until("the trap is set", || trapped.exists()).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed_at_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let trapped = folder.path().join("trapped");
    let script = format!(
        "trap '' TERM; touch {}; while :; do sleep 0.01; done",
        trapped.display()
    );
    let mut spec = shell(&script);
    spec.drain_deadline = Duration::from_millis(100);
    let handle = Supervisor::start(spec).unwrap();
    until("the trap is set", || trapped.exists()).await;
    let pid = handle.pid().unwrap();
    handle.stop().await;
    assert!(!is_running(pid));
}

#[tokio::test]
async fn a_dropped_handle_stops_the_child() {
    let handle = Supervisor::start(shell("exec sleep 1000")).unwrap();
    handle.ready().await.unwrap();
    let pid = handle.pid().unwrap();
    drop(handle);
    until("stopped", || !is_running(pid)).await;
}

#[tokio::test]
async fn a_child_that_says_it_is_broken_is_not_started_again() {
    let handle = Supervisor::start(shell("echo no such model >&2; exit 3")).unwrap();
    let failure = handle.failed().await;
    assert_eq!(
        failure,
        Failure::Broken {
            program: "/bin/sh".into(),
            stderr: "no such model".into()
        }
    );
    assert_eq!(handle.restarts(), 0);
    assert_eq!(
        failure.to_string(),
        "/bin/sh cannot run; its last lines:\nno such model"
    );
}

#[tokio::test]
async fn a_child_that_dies_before_it_is_ready_is_given_up() {
    let mut spec = shell("echo oops >&2; exit 1");
    spec.early_deaths_max = 4;
    spec.probe = Some(Probe {
        address: unix(Path::new("/nonexistent")),
        path: "/ready".into(),
    });
    let handle = Supervisor::start(spec).unwrap();
    assert!(matches!(
        handle.failed().await,
        Failure::NeverReady { deaths: 4, stderr, .. } if stderr == "oops"
    ));
    assert!(handle.ready().await.is_err());
}

#[tokio::test]
async fn a_program_that_is_missing_is_a_failure_that_names_it() {
    let handle = Supervisor::start(CommandSpec::new("/no/such/program")).unwrap();
    assert!(matches!(
        handle.ready().await,
        Err(Failure::NotStarted { program, .. }) if program == "/no/such/program"
    ));
}

#[tokio::test]
async fn a_child_is_ready_when_its_probe_says_200() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut spec = shell("exec sleep 1000");
    spec.probe = Some(Probe {
        address: unix(&socket),
        path: "/ready".into(),
    });
    spec.probe_interval = Duration::from_millis(5);
    let handle = Supervisor::start(spec).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    for answer in [
        "HTTP/1.1 503 Service Unavailable\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        assert!(!handle.is_ready());
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        // A connection that is closed with a question unread in it breaks off before its answer.
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    handle.ready().await.unwrap();
    handle.stop().await;
}

#[tokio::test]
async fn a_child_dies_with_its_supervisor() {
    // This test's own binary is the supervisor: it starts the child, prints its pid, and is killed.
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("pid");
    let mut supervisor = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "supervise_for_another_test", "--ignored"])
        .env("SUPERVISED_PID_FILE", &note)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let read = || {
        std::fs::read_to_string(&note)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    until("the child runs", || read().is_some()).await;
    let pid = read().unwrap();
    assert!(is_running(pid));
    supervisor.kill().await.unwrap();
    until("the child is gone", || !is_running(pid)).await;
}

#[tokio::test]
#[ignore = "run by a_child_dies_with_its_supervisor in a process of its own"]
async fn supervise_for_another_test() {
    let Some(note) = std::env::var_os("SUPERVISED_PID_FILE") else {
        return;
    };
    let handle = Supervisor::start(shell("exec sleep 1000")).unwrap();
    handle.ready().await.unwrap();
    std::fs::write(note, format!("{}\n", handle.pid().unwrap())).unwrap();
    handle.failed().await;
}

fn unix(path: &Path) -> Address {
    Address::Unix(path.to_owned())
}
