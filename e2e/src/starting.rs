//! Starts servers on free loopback ports.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Child;
use std::time::{Duration, Instant};

/// Ports tried before giving up: another process may take a free port before the server does.
const ATTEMPTS_MAX: usize = 10;

/// A loopback address that nobody listens at now.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
    listener.local_addr().expect("the port")
}

/// What `start` makes of the first free port that it can use.
pub fn on_free_port<T>(mut start: impl FnMut(u16) -> Option<T>) -> Option<T> {
    (0..ATTEMPTS_MAX).find_map(|_| start(free_address().port()))
}

/// The server once it is ready, or nothing where it ended before, as for a port in use, or took too
/// long.
pub fn answering(
    mut child: Child,
    patience: Duration,
    mut is_ready: impl FnMut() -> bool,
) -> Option<Child> {
    let deadline = Instant::now() + patience;
    loop {
        if child.try_wait().expect("the server's state").is_some() {
            return None;
        }
        if is_ready() {
            return Some(child);
        }
        if Instant::now() > deadline {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server's end");
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
