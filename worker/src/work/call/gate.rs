//! Where calls wait for their turn: one at a time asks the limiter, in the order of their arrival, so
//! that none is overtaken for ever and a shared limiter is not asked by all at once.

use std::sync::Arc;
use std::time::Duration;

use millrace_leases::LeaseError;
use millrace_leases::limits::{Ask, Grant, Limiter, Settlement, Ticket, Verdict};
use tokio::sync::{Mutex, Notify, Semaphore, SemaphorePermit};

/// Calls that wait for their turn. Few, so that what travels in a call is decided shortly before it is
/// made, and what was learned from those before it counts.
const SEATS: usize = 4;

/// Lets the calls of one process in, whatever job they are of.
pub struct Gate {
    limiter: Arc<dyn Limiter>,
    seats: Semaphore,
    turn: Mutex<()>,
    ended: Notify,
}

impl Gate {
    /// A gate before `limiter`.
    pub fn new(limiter: Arc<dyn Limiter>) -> Self {
        Self {
            limiter,
            seats: Semaphore::new(SEATS),
            turn: Mutex::default(),
            ended: Notify::new(),
        }
    }

    /// Waits until a call may wait for its turn, for as long as what this returns is kept.
    pub async fn seat(&self) -> SemaphorePermit<'_> {
        let seat = self.seats.acquire().await;
        seat.expect("the semaphore is never closed")
    }

    /// Waits until a call may be made.
    pub async fn enter(self: &Arc<Self>, ask: &Ask) -> Result<Entered, LeaseError> {
        let _turn = self.turn.lock().await;
        loop {
            let ended = self.ended.notified();
            match self.limiter.ask(ask).await? {
                Grant::Granted(ticket) => {
                    return Ok(Entered {
                        gate: self.clone(),
                        ticket: Some(ticket),
                        concurrency: ask.limits.concurrency,
                    });
                }
                Grant::Wait(wait) => {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = ended => {}
                    }
                }
            }
        }
    }

    async fn settle(&self, ticket: &Ticket, settlement: &Settlement) {
        if let Err(error) = self.limiter.settle(ticket, settlement).await {
            tracing::warn!(%error, "the end of a call could not be told to the limits");
        }
        self.ended.notify_one();
    }
}

/// A call that may be made. Dropped, it has ended without anybody knowing how.
pub struct Entered {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
    concurrency: u64,
}

impl Entered {
    /// The call has ended.
    pub async fn leave(mut self, tokens: Option<u64>, verdict: Verdict, pause: Option<Duration>) {
        let settlement = Settlement {
            tokens,
            verdict,
            pause,
            concurrency: self.concurrency,
        };
        if let Some(ticket) = self.ticket.take() {
            self.gate.settle(&ticket, &settlement).await;
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let (gate, concurrency) = (self.gate.clone(), self.concurrency);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let settlement = Settlement {
                    tokens: None,
                    verdict: Verdict::Nothing,
                    pause: None,
                    concurrency,
                };
                gate.settle(&ticket, &settlement).await;
            });
        }
    }
}
