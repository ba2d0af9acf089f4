//! One cluster for all tests of this program, and whose turn it is.

use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use millrace_e2e::skips::skip;

use crate::choice::{Choice, KUBECONFIG};
use crate::cluster::Cluster;

/// The cluster. Tests share it, but for those that take away what others need.
static CLUSTER: RwLock<Option<Cluster>> = RwLock::new(None);

/// Most tests that share the cluster at a time: the pods of all are on one node.
const SHARING_MAX: usize = 2;

/// Places for tests that share the cluster.
static PLACES: (Mutex<usize>, Condvar) = (Mutex::new(SHARING_MAX), Condvar::new());

/// The turn of a test at the cluster.
pub struct Turn(Guard);

enum Guard {
    Shared(RwLockReadGuard<'static, Option<Cluster>>, Place),
    Alone(RwLockWriteGuard<'static, Option<Cluster>>),
}

impl std::ops::Deref for Turn {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        let cluster = match &self.0 {
            Guard::Shared(cluster, Place) => cluster.as_ref(),
            Guard::Alone(cluster) => cluster.as_ref(),
        };
        cluster.expect("a turn is at a running cluster")
    }
}

/// A place among those that share; given back when dropped.
struct Place;

impl Place {
    fn take() -> Self {
        let (places, freed) = &PLACES;
        let places = places.lock().unwrap_or_else(PoisonError::into_inner);
        let places = freed.wait_while(places, |places| *places == 0);
        *places.unwrap_or_else(PoisonError::into_inner) -= 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (places, freed) = &PLACES;
        *places.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
    }
}

/// Waits for this test's turn beside others; `None`, with a note that says why, where there is no
/// cluster.
pub fn turn() -> Option<Turn> {
    Some(shared(choice(None)?))
}

/// The turn of a test that does something which no user's cluster is there for, as in `it mounts a
/// folder of this machine`, but takes nothing away.
pub fn turn_at_own(does: &str) -> Option<Turn> {
    Some(shared(choice(Some(does))?))
}

fn shared(choice: Choice) -> Turn {
    let place = Place::take();
    let read = || CLUSTER.read().unwrap_or_else(PoisonError::into_inner);
    let mut cluster = read();
    if cluster.is_none() {
        drop(cluster);
        drop(up(choice));
        cluster = read();
    }
    Turn(Guard::Shared(cluster, place))
}

/// The turn of a test that takes away what others need, such as the operator.
pub fn turn_alone() -> Option<Turn> {
    Some(Turn(Guard::Alone(up(choice(None)?))))
}

/// The turn of a test that takes away from a whole cluster or its node, as in `it drains the node`,
/// which no user's cluster is there for.
pub fn turn_alone_at_own(does: &str) -> Option<Turn> {
    Some(Turn(Guard::Alone(up(choice(Some(does))?))))
}

/// Which cluster there is for a test that does this.
fn choice(does: Option<&str>) -> Option<Choice> {
    let choice = Choice::of(|name| std::env::var(name).ok());
    let choice = choice.unwrap_or_else(|error| panic!("{error}"));
    match (&choice, does) {
        (Choice::Own, _) if !can_make_clusters() => {
            skip(&format!(
                "only root, with the right to make namespaces, can make a cluster; \
                 {KUBECONFIG} names one that is there"
            ));
            None
        }
        (Choice::Theirs(_), Some(does)) => {
            skip(&format!(
                "{does}, which the cluster of {KUBECONFIG} is not for"
            ));
            None
        }
        _ => Some(choice),
    }
}

/// The cluster, with millrace installed in it by whoever comes first.
fn up(choice: Choice) -> RwLockWriteGuard<'static, Option<Cluster>> {
    let mut there = CLUSTER.write().unwrap_or_else(PoisonError::into_inner);
    if there.is_none() {
        let cluster = match choice {
            Choice::Own => Cluster::up(),
            Choice::Theirs(theirs) => Cluster::found(theirs),
        };
        cluster.install();
        *there = Some(cluster);
        end_with_this_process();
    }
    there
}

fn can_make_clusters() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "--net", "--pid", "--fork", "true"]);
    // SAFETY: geteuid takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    is_root && probe.output().is_ok_and(|ended| ended.status.success())
}

/// Statics are not dropped, so the sweeper is waited for when the process ends in an orderly way.
fn end_with_this_process() {
    extern "C" fn down() {
        let mut cluster = CLUSTER.write().unwrap_or_else(PoisonError::into_inner);
        drop(cluster.take());
    }
    // SAFETY: the function is plain and takes no part in unwinding.
    unsafe { libc::atexit(down) };
}
