//! The queue: one owner holds the batcher, request handlers add to it, engine threads take from
//! it.
//!
//! Its bound is counted at the door, in permits: whoever gets no permit for its texts is answered
//! 429 before anything is tokenised, and each permit is given back when its answer is sent or its
//! asker is gone. So neither the channel nor the batcher can hold more than `queue_items_max` of
//! each priority, and a job that fills the queue never shuts the door on online requests.

use std::{sync::Arc, time::Instant};

use millrace_protocol::row::{RowError, RowErrorCode};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    batcher::{Batch, Batcher, Demand, Item, Limits, Priority},
    metrics::Metrics,
    work::Work,
};

/// Depth of the channel into the queue. A message holds a chunk of tokenised texts; the queue
/// empties the channel within microseconds, so this only smooths bursts.
const ADDS_MAX: usize = 256;

/// The side of the request handlers; cheap to clone.
#[derive(Clone)]
pub struct QueueHandle {
    adds: mpsc::Sender<Vec<Item<Work>>>,
    online_permits: Arc<Semaphore>,
    batch_permits: Arc<Semaphore>,
    queue_items_max: usize,
    gone: Arc<Notify>,
}

/// Why texts were not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DoorError {
    /// Too many texts are waiting already.
    #[error("the queue is full: {queued} of {queue_items_max} texts are waiting")]
    Full {
        /// Texts waiting now.
        queued: usize,
        /// Most texts that may wait.
        queue_items_max: usize,
    },
    /// The request alone is larger than the queue.
    #[error("the request has {items} texts, the queue holds at most {queue_items_max}")]
    NeverFits {
        /// Texts of the request, counted once per model.
        items: usize,
        /// Most texts that may wait.
        queue_items_max: usize,
    },
}

impl QueueHandle {
    /// Permits for `items` texts, or none at all. Does not wait.
    pub fn enter(
        &self,
        items: usize,
        priority: Priority,
    ) -> Result<OwnedSemaphorePermit, DoorError> {
        let queue_items_max = self.queue_items_max;
        let wanted = u32::try_from(items)
            .ok()
            .filter(|_| items <= queue_items_max);
        let wanted = wanted.ok_or(DoorError::NeverFits {
            items,
            queue_items_max,
        })?;
        let permits = match priority {
            Priority::Online => &self.online_permits,
            Priority::Batch => &self.batch_permits,
        };
        permits
            .clone()
            .try_acquire_many_owned(wanted)
            .map_err(|_| DoorError::Full {
                queued: queue_items_max - permits.available_permits(),
                queue_items_max,
            })
    }

    /// Hands tokenised texts to the queue. Blocks while the channel is full; for threads outside
    /// the async runtime.
    pub fn add_blocking(&self, items: Vec<Item<Work>>) {
        // A queue that ended drops the items, and each dropped reply says so.
        let _ = self.adds.blocking_send(items);
    }

    /// Tells the queue that someone no longer waits, so that it looks for texts to drop.
    pub fn sweep(&self) {
        self.gone.notify_one();
    }
}

/// A batch on its way to an engine thread.
pub type Delivery = oneshot::Receiver<Batch<Work>>;

/// The side of one engine thread.
pub struct EngineSeat {
    engine: usize,
    wants: mpsc::UnboundedSender<Want>,
}

impl EngineSeat {
    /// Asks for a batch. An engine thread has one open request at most; the delivery fails when
    /// the queue has ended.
    pub fn request(&self, demand: Demand) -> Delivery {
        let (reply, delivery) = oneshot::channel();
        let _ = self.wants.send(Want::Batch {
            engine: self.engine,
            demand,
            reply,
        });
        delivery
    }

    /// Says that the thread has nothing to do any more while its request is still open.
    pub fn now_idle(&self) {
        let _ = self.wants.send(Want::NowIdle {
            engine: self.engine,
        });
    }
}

impl Drop for EngineSeat {
    fn drop(&mut self) {
        let _ = self.wants.send(Want::Gone {
            engine: self.engine,
        });
    }
}

enum Want {
    Batch {
        engine: usize,
        demand: Demand,
        reply: oneshot::Sender<Batch<Work>>,
    },
    NowIdle {
        engine: usize,
    },
    /// The thread died: otherwise it ends only after the queue.
    Gone {
        engine: usize,
    },
}

/// Starts the queue's owner on the current runtime. It ends when every [`QueueHandle`] is gone and
/// the last text is delivered; then the engine threads end too. It ends at once if one of them
/// dies, and every text still waiting is answered as failed.
pub fn start(
    limits: Limits,
    queue_items_max: usize,
    engines: usize,
    metrics: Arc<Metrics>,
) -> (QueueHandle, Vec<EngineSeat>, JoinHandle<()>) {
    let (adds, added) = mpsc::channel(ADDS_MAX);
    // Unbounded in type only: each engine thread has at most two messages under way.
    let (wants, wanted) = mpsc::unbounded_channel();
    let gone = Arc::new(Notify::new());
    let seats = (0..engines)
        .map(|engine| EngineSeat {
            engine,
            wants: wants.clone(),
        })
        .collect::<Vec<_>>();
    let owner = Owner {
        batcher: Batcher::new(limits),
        open: true,
        added,
        wanted,
        gone: gone.clone(),
        requests: (0..engines).map(|_| None).collect(),
        metrics,
    };
    let handle = QueueHandle {
        adds,
        online_permits: Arc::new(Semaphore::new(queue_items_max)),
        batch_permits: Arc::new(Semaphore::new(queue_items_max)),
        queue_items_max,
        gone,
    };
    (handle, seats, tokio::spawn(owner.run()))
}

struct Owner {
    batcher: Batcher<Work>,
    /// Whether any request handler can still add.
    open: bool,
    added: mpsc::Receiver<Vec<Item<Work>>>,
    wanted: mpsc::UnboundedReceiver<Want>,
    gone: Arc<Notify>,
    /// The open request of each engine thread.
    requests: Vec<Option<(Demand, oneshot::Sender<Batch<Work>>)>>,
    metrics: Arc<Metrics>,
}

impl Owner {
    async fn run(mut self) {
        while self.open || !self.batcher.is_empty() {
            let wake = self.batcher.next_wake(self.has_idle_engine());
            let timer = async {
                match wake {
                    Some(wake) => tokio::time::sleep_until(wake.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                items = self.added.recv(), if self.open => match items {
                    Some(items) => items.into_iter().for_each(|item| self.batcher.push(item)),
                    None => self.open = false,
                },
                want = self.wanted.recv() => match want {
                    Some(Want::Batch { engine, demand, reply }) => {
                        self.requests[engine] = Some((demand, reply));
                    }
                    Some(Want::NowIdle { engine }) => {
                        if let Some((demand, _)) = &mut self.requests[engine] {
                            *demand = Demand::Idle;
                        }
                    }
                    Some(Want::Gone { engine }) => {
                        tracing::error!(engine, "an engine thread died");
                        return;
                    }
                    None => return,
                },
                () = self.gone.notified() => {
                    let dropped = self.batcher.take_where(|item| item.payload.reply.is_gone());
                    self.metrics.abandoned.inc_by(dropped.len() as u64);
                }
                () = timer => {}
            }
            self.deliver(tokio::time::Instant::now().into_std());
        }
    }

    fn has_idle_engine(&self) -> bool {
        self.requests
            .iter()
            .flatten()
            .any(|(demand, _)| *demand == Demand::Idle)
    }

    /// Drops what came too late and serves the engine threads, the idle ones first.
    fn deliver(&mut self, now: Instant) {
        for item in self.batcher.take_expired(now) {
            let message = "the text waited in the queue until its deadline; send fewer at a time";
            item.payload
                .reply
                .refuse(RowError::new(RowErrorCode::Timeout, message));
        }
        for demand in [Demand::Idle, Demand::Ahead] {
            for request in &mut self.requests {
                if !request.as_ref().is_some_and(|(other, _)| *other == demand) {
                    continue;
                }
                let Some(batch) = self.batcher.take_ready(now, demand) else {
                    break;
                };
                let Some((_, reply)) = request.take() else {
                    continue;
                };
                self.metrics.note_batch(&batch, now);
                // An engine thread that is gone drops the batch, and each reply says so.
                let _ = reply.send(batch);
            }
        }
        self.metrics.queue_items.set(self.batcher.len() as i64);
    }
}
