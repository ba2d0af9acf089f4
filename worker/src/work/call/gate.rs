//! Where calls wait for their turn: one at a time asks the limiter, in the order of their arrival, so
//! that none is overtaken for ever and a shared limiter is not asked by all at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use millrace_leases::LeaseError;
use millrace_leases::limits::{Allowed, Ask, Grant, Limiter, Settlement, Ticket, Verdict};
use millrace_protocol::cost::Cost;
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

    /// Waits until a call may be made, or cannot be for what its job has paid.
    pub async fn enter(self: &Arc<Self>, ask: &Ask) -> Result<Turn, LeaseError> {
        let _turn = self.turn.lock().await;
        loop {
            let ended = self.ended.notified();
            match self.limiter.ask(ask).await? {
                Grant::Granted(ticket) => {
                    return Ok(Turn::Entered(Entered {
                        gate: self.clone(),
                        ticket: Some(ticket),
                        concurrency: ask.limits.concurrency,
                        paid: None,
                        is_made: true,
                    }));
                }
                Grant::Unfilled => return Ok(Turn::Unfilled),
                Grant::Spent => return Ok(Turn::Spent),
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

/// What makes the limiter of this name.
type MakeLimiter = dyn Fn(&str) -> Result<Arc<dyn Limiter>, LeaseError> + Send + Sync;

/// The gates of one process, each made when it is first needed: one for each service that jobs ask,
/// and one for the account of each job that asks several.
pub struct Gates {
    make: Box<MakeLimiter>,
    made: Lock<HashMap<String, Arc<Gate>>>,
}

impl Gates {
    /// Gates before the limiters that `make` makes, by their names.
    pub fn new(
        make: impl Fn(&str) -> Result<Arc<dyn Limiter>, LeaseError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            make: Box::new(make),
            made: Lock::default(),
        }
    }

    /// The gate of this name.
    pub fn of(&self, name: &str) -> Result<Arc<Gate>, LeaseError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = made.get(name) {
            return Ok(gate.clone());
        }
        let gate = Arc::new(Gate::new((self.make)(name)?));
        made.insert(name.to_owned(), gate.clone());
        Ok(gate)
    }
}

/// What became of a call's turn.
pub enum Turn {
    /// It may be made.
    Entered(Entered),
    /// Nobody knows what its job has paid: ask again and say it.
    Unfilled,
    /// Its job has paid what it may.
    Spent,
}

/// What a call took, as far as somebody knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bought {
    /// Tokens.
    pub tokens: Option<u64>,
    /// Money.
    pub cost: Option<Cost>,
}

impl Bought {
    /// It was not answered.
    pub const NOTHING: Self = Self {
        tokens: Some(0),
        cost: Some(Cost::NOTHING),
    };
}

/// What a call says of its API.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    /// How many calls it bears at a time.
    pub verdict: Verdict,
    /// How long no call may be made.
    pub pause: Option<Duration>,
    /// What it lets in in a minute.
    pub allowed: Allowed,
}

impl Heard {
    /// Nothing was heard of it.
    const NOTHING: Self = Self {
        verdict: Verdict::Nothing,
        pause: None,
        allowed: Allowed {
            requests: None,
            tokens: None,
        },
    };
}

/// A call that may be made. Dropped, it has ended without anybody knowing how.
pub struct Entered {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
    concurrency: u64,
    /// Where it was paid, if not here.
    paid: Option<Box<Entered>>,
    /// Whether it is made as far as this gate is concerned: one that is not costs nothing.
    is_made: bool,
}

impl Entered {
    /// The same call, which is not made before it is paid at another gate.
    pub fn unpaid(mut self) -> Self {
        self.is_made = false;
        self
    }

    /// The same call, which was paid at another gate.
    pub fn paid_at(mut self, paid: Entered) -> Self {
        self.is_made = true;
        self.paid = Some(Box::new(paid));
        self
    }

    /// The call has ended.
    pub async fn leave(mut self, bought: Bought, heard: Heard) {
        if let Some(mut paid) = self.paid.take() {
            paid.settle(bought, Heard::NOTHING).await;
        }
        self.settle(bought, heard).await;
    }

    async fn settle(&mut self, bought: Bought, heard: Heard) {
        let settlement = self.settlement(bought, heard);
        if let Some(ticket) = self.ticket.take() {
            self.gate.settle(&ticket, &settlement).await;
        }
    }

    fn settlement(&self, bought: Bought, heard: Heard) -> Settlement {
        let Bought { tokens, cost } = bought;
        let Heard {
            verdict,
            pause,
            allowed,
        } = heard;
        Settlement {
            tokens,
            cost,
            verdict,
            pause,
            allowed,
            concurrency: self.concurrency,
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let gate = self.gate.clone();
        let bought = match self.is_made {
            true => Bought::default(),
            false => Bought::NOTHING,
        };
        let settlement = self.settlement(bought, Heard::NOTHING);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                gate.settle(&ticket, &settlement).await;
            });
        }
    }
}
