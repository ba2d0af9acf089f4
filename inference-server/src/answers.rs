//! The answers of one question, as they come.
//!
//! Exactly one per slot: what is not there at the deadline ends as a time-out. Dropping them
//! withdraws the texts that have not run yet.

use std::{pin::Pin, time::Instant};

use millrace_protocol::row::{RowError, RowErrorCode};
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{queue::QueueHandle, work::Answer};

/// What a question is answered, in no order.
pub struct Answers {
    receiver: mpsc::Receiver<Answer>,
    deadline: Pin<Box<Sleep>>,
    /// The slots that have no answer yet, and how many they are.
    open: Vec<bool>,
    open_slots: usize,
    /// Once the deadline has passed, the slot from which on those without an answer time out.
    late_from: Option<usize>,
    queue: QueueHandle,
    /// Brings the texts into the queue, if any must. A task of its own, so that a client who is slow to read
    /// holds up nobody who waits for the same text.
    _work: Option<AbortOnDropHandle<()>>,
}

impl Answers {
    /// The answers to `slots` slots, which `work` brings about through the sender of `receiver`.
    pub(crate) fn new(
        receiver: mpsc::Receiver<Answer>,
        slots: usize,
        deadline: Instant,
        queue: QueueHandle,
        work: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        Self {
            receiver,
            deadline: Box::pin(sleep_until(deadline.into())),
            open: vec![true; slots],
            open_slots: slots,
            late_from: None,
            queue,
            _work: work,
        }
    }

    /// The next answer; `None` after the last.
    pub async fn next(&mut self) -> Option<Answer> {
        if self.open_slots == 0 {
            return None;
        }
        if self.late_from.is_none() {
            tokio::select! {
                biased;
                answer = self.receiver.recv() => {
                    let answer = answer.expect("every reply sends exactly one answer");
                    self.close(answer.slot);
                    return Some(answer);
                }
                () = &mut self.deadline => {
                    self.withdraw();
                    self.late_from = Some(0);
                }
            }
        }
        let from = self.late_from?;
        let slot = from + self.open[from..].iter().position(|open| *open)?;
        self.late_from = Some(slot);
        self.close(slot);
        let message = "the answers did not come before the deadline; send fewer texts at a time";
        Some(Answer {
            slot,
            tokens: 0,
            cached: false,
            result: Err(RowError::new(RowErrorCode::Timeout, message)),
        })
    }

    fn close(&mut self, slot: usize) {
        debug_assert!(self.open[slot], "a slot has one answer");
        self.open[slot] = false;
        self.open_slots -= 1;
    }

    /// Tells the queue that nobody waits any more. The channel is closed first, since that is what
    /// the queue looks for.
    fn withdraw(&mut self) {
        self.receiver.close();
        self.queue.sweep();
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.open_slots > 0 {
            self.withdraw();
        }
    }
}
