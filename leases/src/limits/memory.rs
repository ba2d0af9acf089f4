//! The limits of one process, which has the API to itself.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::state::{Refusal, State};
use super::{Ask, Grant, Limiter, Minute, Settlement, Ticket, new_id};
use crate::LeaseError;

/// Wait for a call to end before asking again, if nobody says that one has.
const CALL_ENDS: Duration = Duration::from_millis(50);

/// Lets the calls of one process in.
#[derive(Debug)]
pub struct MemoryLimiter {
    state: Mutex<State>,
    started: Instant,
    minute: Minute,
}

impl MemoryLimiter {
    /// A limiter that has let nothing in yet.
    pub fn new(minute: Minute) -> Self {
        Self {
            state: Mutex::default(),
            started: Instant::now(),
            minute,
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

#[async_trait]
impl Limiter for MemoryLimiter {
    async fn ask(&self, ask: &Ask) -> Result<Grant, LeaseError> {
        let id = new_id();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match state.ask(&id, ask, self.minute, self.now_ms()) {
            Ok(()) => Grant::Granted(Ticket { id }),
            Err(Refusal::For(wait_ms)) => Grant::Wait(Duration::from_millis(wait_ms)),
            Err(Refusal::UntilACallEnds) => Grant::Wait(CALL_ENDS),
            Err(Refusal::Unfilled) => Grant::Unfilled,
            Err(Refusal::Spent) => Grant::Spent,
        })
    }

    async fn settle(&self, ticket: &Ticket, settlement: &Settlement) -> Result<(), LeaseError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.settle(&ticket.id, settlement, self.now_ms());
        Ok(())
    }
}
