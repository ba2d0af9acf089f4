//! The binary as a supervisor or a kubelet sees it: signals and exit codes.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use http::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    client::{get, send},
    scene::{SERVICE, until, until_ready},
};

struct Process {
    folder: TempDir,
    child: Child,
}

impl Process {
    fn start(service: &str, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("service.yaml"), service).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_millrace-inference-server"))
            .arg("--service")
            .arg(folder.path().join("service.yaml"))
            .arg("--uds")
            .arg(folder.path().join("socket"))
            .args(args)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { folder, child }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn terminate(&self) {
        kill(self.child.id().unwrap(), libc::SIGTERM);
    }
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: `kill` takes no pointers.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Asks until the server says that it is not ready; every question asked must be answered.
async fn load(socket: &Path, failures: &AtomicUsize, asked: &AtomicUsize, stop: &AtomicBool) {
    let body = json!({"inputs": ["grain", "water turns the wheel"]}).to_string();
    while !stop.load(Ordering::Relaxed) {
        match send(socket, Method::POST, "/embed", body.clone()).await {
            Ok(answer) if answer.status == StatusCode::OK => asked.fetch_add(1, Ordering::Relaxed),
            _ => failures.fetch_add(1, Ordering::Relaxed),
        };
    }
}

#[tokio::test]
async fn sigterm_under_load_costs_no_answer() {
    let args = [
        "--fake-backend",
        crate::scene::SLOW,
        "--drain-delay-ms",
        // A busy machine needs its time to see that the server is unready.
        "5000",
    ];
    let mut server = Process::start(SERVICE, &args);
    let socket = server.socket();
    until_ready(&socket).await;
    let counters = Arc::new((
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    ));
    let clients = (0..8).map(|_| {
        let (socket, counters) = (socket.clone(), counters.clone());
        tokio::spawn(async move { load(&socket, &counters.0, &counters.1, &counters.2).await })
    });
    let clients = clients.collect::<Vec<_>>();
    until("there is load", async || {
        counters.1.load(Ordering::Relaxed) > 20
    })
    .await;
    server.terminate();
    until("unready", async || {
        get(&socket, "/ready").await.status == 503
    })
    .await;
    // A load balancer that sees this sends no more; what it has sent is answered.
    counters.2.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(counters.0.load(Ordering::Relaxed), 0);
    assert_eq!(server.child.wait().await.unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_service_that_cannot_be_served_exits_with_the_code_for_broken() {
    let no_models = SERVICE
        .split("  models:")
        .next()
        .unwrap()
        .replace("spec:", "spec: {models: []}");
    for (service, args) in [
        (no_models.as_str(), &["--fake-backend"][..]),
        ("nonsense", &["--fake-backend"]),
        // The model's folder does not exist.
        (SERVICE, &[]),
    ] {
        for supervise in [&[][..], &["--supervise"]] {
            let server = Process::start(service, &[args, supervise].concat());
            let output = server.child.wait_with_output().await.unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{stderr}");
            assert!(stderr.lines().count() >= 1, "{stderr}");
        }
    }
}

#[tokio::test]
async fn a_supervised_server_is_back_after_its_death_and_drains_on_sigterm() {
    let mut supervisor = Process::start(SERVICE, &["--fake-backend", "--supervise"]);
    let socket = supervisor.socket();
    until_ready(&socket).await;
    let first = only_child(supervisor.child.id().unwrap()).unwrap();
    kill(first, libc::SIGKILL);
    until("another child", async || {
        only_child(supervisor.child.id().unwrap()).is_some_and(|child| child != first)
    })
    .await;
    until("ready again", async || {
        send(&socket, Method::GET, "/ready", "")
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await;
    let second = only_child(supervisor.child.id().unwrap()).unwrap();
    supervisor.terminate();
    assert_eq!(supervisor.child.wait().await.unwrap().code(), Some(0));
    assert!(!Path::new(&format!("/proc/{second}")).exists());
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_lack_of_memory_at_the_start_is_no_reason_to_give_the_service_up() {
    // The first text has two words.
    let server = Process::start(SERVICE, &["--fake-backend", "oom-above-tokens=1"]);
    let output = server.child.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("out of memory"), "{stderr}");
}

#[tokio::test]
async fn a_lost_device_ends_the_process_without_an_answer_and_another_takes_over() {
    let args = ["--fake-backend", "device-lost-on=[lost]", "--supervise"];
    let mut supervisor = Process::start(SERVICE, &args);
    let socket = supervisor.socket();
    until_ready(&socket).await;
    let first = only_child(supervisor.child.id().unwrap()).unwrap();
    let body = json!({"inputs": ["grain", "[lost]"]}).to_string();
    let answer = send(&socket, Method::POST, "/embed", body).await;
    assert!(answer.is_err(), "{answer:?}");
    until("another child", async || {
        only_child(supervisor.child.id().unwrap()).is_some_and(|child| child != first)
    })
    .await;
    until("it answers", async || {
        let body = json!({"inputs": ["grain"]}).to_string();
        send(&socket, Method::POST, "/embed", body)
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await;
    supervisor.terminate();
    assert_eq!(supervisor.child.wait().await.unwrap().code(), Some(0));
}

/// The child process that some thread of `pid` has.
fn only_child(pid: u32) -> Option<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    threads.flatten().find_map(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}
