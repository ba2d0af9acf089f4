//! Single flight: of those who ask the same at the same time, one finds the answer out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use millrace_protocol::priority::Priority;
use millrace_protocol::wire::Prediction;
use tokio::sync::oneshot;

use super::{Cache, Key};

type Follower = oneshot::Sender<Arc<Prediction>>;

/// What is being found out, and who waits for it. Bounded by those who ask: whoever leads
/// or waits holds a place in a queue, or a row of a shard.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<(Key, Priority), Vec<Follower>>>);

/// Who finds an answer out.
pub enum Role {
    /// The answer is there already.
    Known(Arc<Prediction>),
    /// The caller does.
    Lead(Lead),
    /// Somebody else does. An error says that they gave up, and tells nothing of the text.
    Follow(oneshot::Receiver<Arc<Prediction>>),
}

/// The duty to find an answer out. Whoever drops it gave up.
pub struct Lead {
    cache: Arc<Cache>,
    key: Key,
    priority: Priority,
    ended: bool,
}

impl Lead {
    pub(super) fn or_follow(cache: Arc<Cache>, key: Key, priority: Priority) -> Role {
        let mut flights = cache.flights.lock();
        if let Some(followers) = flights.get_mut(&(key, priority)) {
            let (sender, coming) = oneshot::channel();
            followers.push(sender);
            return Role::Follow(coming);
        }
        flights.insert((key, priority), Vec::new());
        drop(flights);
        Role::Lead(Lead {
            cache,
            key,
            priority,
            ended: false,
        })
    }

    /// Which answer it is.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Gives an answer that was computed to all tiers and to whoever waits.
    pub fn computed(self, answer: &Arc<Prediction>) {
        if let Some(shared) = &self.cache.shared {
            shared.put(self.key, answer);
        }
        if let Some(disk) = &self.cache.disk {
            disk.put(self.key, answer);
        }
        self.found(answer);
    }

    /// Gives an answer that a slower tier knew to this process and to whoever waits.
    pub fn found(self, answer: &Arc<Prediction>) {
        // Before the flight ends, so that nobody finds neither.
        self.cache.memory.insert(self.key, answer.clone());
        self.deliver(answer);
    }

    /// Gives an answer that this process knows to whoever waits.
    pub(super) fn deliver(mut self, answer: &Arc<Prediction>) {
        for follower in self.end() {
            // Some no longer wait.
            let _ = follower.send(answer.clone());
        }
    }

    /// Ends the flight, once: the next one of the same key is another's.
    fn end(&mut self) -> Vec<Follower> {
        if std::mem::replace(&mut self.ended, true) {
            return Vec::new();
        }
        let mut flights = self.cache.flights.lock();
        flights
            .remove(&(self.key, self.priority))
            .unwrap_or_default()
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl std::fmt::Debug for Lead {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Lead").field(&self.priority).finish()
    }
}

impl Flights {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Key, Priority), Vec<Follower>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
