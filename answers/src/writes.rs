//! Answers on their way to a tier that is slower than the models: they wait in a bounded queue, and what finds
//! it full is dropped, since a tier need not know all.

use std::sync::Arc;

use millrace_protocol::wire::Prediction;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::Key;

/// An answer to be written.
pub(super) type Write = (Key, Arc<Prediction>);

/// How much waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct WritesOptions {
    /// Answers that wait to be written; above that they are dropped.
    pub(super) waiting_max: usize,
    /// Answers written at a time.
    pub(super) at_once_max: usize,
}

/// The queue of a tier.
pub(super) struct Writes {
    queue: mpsc::Sender<Queued>,
    /// Ends with the tier; what it has not written was only a hint.
    _writer: AbortOnDropHandle<()>,
}

enum Queued {
    Answer(Write),
    /// Everything before it is written, or cannot be.
    Mark(oneshot::Sender<()>),
}

impl Writes {
    /// A queue whose answers `write` writes, some at a time, until it says that it cannot any more. Needs a
    /// runtime.
    pub(super) fn new<F>(
        options: WritesOptions,
        write: impl Fn(Vec<Write>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = bool> + Send + 'static,
    {
        let WritesOptions {
            waiting_max,
            at_once_max,
        } = options;
        let (queue, mut queued) = mpsc::channel(waiting_max);
        let writer = tokio::spawn(async move {
            let mut batch = Vec::with_capacity(at_once_max);
            while queued.recv_many(&mut batch, at_once_max).await > 0 {
                let (mut answers, mut marks) = (Vec::with_capacity(batch.len()), Vec::new());
                for queued in batch.drain(..) {
                    match queued {
                        Queued::Answer(answer) => answers.push(answer),
                        Queued::Mark(passed) => marks.push(passed),
                    }
                }
                if !write(answers).await {
                    return;
                }
                for passed in marks {
                    // Nobody may wait any more.
                    passed.send(()).ok();
                }
            }
        });
        Self {
            queue,
            _writer: AbortOnDropHandle::new(writer),
        }
    }

    /// Writes an answer, some time. Never waits.
    pub(super) fn put(&self, key: Key, answer: &Arc<Prediction>) {
        let _ = self.queue.try_send(Queued::Answer((key, answer.clone())));
    }

    /// Waits until what was put before is written, or cannot be.
    pub(super) async fn flush(&self) {
        let (mark, passed) = oneshot::channel();
        if self.queue.send(Queued::Mark(mark)).await.is_ok() {
            passed.await.ok();
        }
    }
}
