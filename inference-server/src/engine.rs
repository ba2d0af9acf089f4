//! The engine threads: they run batches on the models and answer each text.
//!
//! They are plain threads, never the async runtime's: a forward blocks, and libtorch keeps state
//! per thread. While one batch runs, the next full one is already being fetched. Whatever a
//! forward does, short of killing the process, costs only the texts that caused it: a batch that
//! fails is halved until the culprit stands alone.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::Instant,
};

use millrace_models::{
    backend::{BackendError, Head, HeadOutput, MODEL_PANICKED, PackedBatch},
    model::Model,
};
use millrace_protocol::row::{RowError, RowErrorCode};
use tokio::sync::oneshot;

use crate::{
    batcher::{Batch, Demand},
    metrics::Metrics,
    queue::EngineSeat,
    trace,
    work::Work,
};

/// Exit code of a process whose device is lost. Another process may do better.
const EXIT_CODE_DEVICE_LOST: i32 = 1;

/// The running engine threads.
pub struct Engine {
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts one thread per seat.
    pub fn start(
        models: Arc<Vec<Model>>,
        seats: Vec<EngineSeat>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let threads = seats.into_iter().enumerate().map(|(index, seat)| {
            let models = models.clone();
            let metrics = metrics.clone();
            std::thread::Builder::new()
                .name(format!("engine-{index}"))
                .spawn(move || serve(&models, &seat, &metrics))
        });
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
        })
    }

    /// Waits for the threads, which end after the queue. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("an engine thread panicked");
            }
        }
    }
}

fn serve(models: &[Model], seat: &EngineSeat, metrics: &Metrics) {
    let mut delivery = seat.request(Demand::Idle);
    loop {
        let received = match delivery.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => {
                seat.now_idle();
                delivery.blocking_recv().ok()
            }
            received => received.ok(),
        };
        let Some(batch) = received else { return };
        delivery = seat.request(Demand::Ahead);
        run(models, batch, metrics);
    }
}

/// Runs one batch and answers every text of it.
fn run(models: &[Model], batch: Batch<Work>, metrics: &Metrics) {
    let model = &models[batch.model];
    let works = batch.items.into_iter().map(|item| item.payload);
    let works = works
        .filter(|work| !work.reply.is_gone())
        .collect::<Vec<_>>();
    let _in_span = trace::batch(model.name(), &works).entered();
    // Halves still to do; the next one is the last.
    let mut open = vec![works];
    while let Some(mut works) = open.pop() {
        if works.is_empty() {
            continue;
        }
        let started = Instant::now();
        let outcome = forward(model, &works);
        metrics
            .forward_seconds
            .observe(started.elapsed().as_secs_f64());
        match outcome {
            Ok(output) => answer(model, works, &output, metrics),
            Err(ForwardFailure::Backend(error @ BackendError::DeviceLost(_))) => {
                end_process(model, &error)
            }
            Err(failure) if works.len() > 1 && failure.may_be_one_text() => {
                metrics.batch_splits.inc();
                let half = works.split_off(works.len() / 2);
                open.extend([half, works]);
            }
            Err(failure) => {
                tracing::warn!(model = model.name(), error = %failure, "a forward failed");
                for work in works {
                    fail(work, failure.row_error(), metrics);
                }
            }
        }
    }
}

/// Ends this process, to be started again. Its texts are not answered: a broken connection tells a
/// worker to find the one that did this and to send the others again, an answer would end them all.
fn end_process(model: &Model, error: &BackendError) -> ! {
    tracing::error!(model = model.name(), %error, "this process ends");
    // SAFETY: `_exit` takes no pointers. Unlike `exit` it runs none of the tear-down of the libraries
    // that drive the device, which may hang on one that is lost.
    unsafe { libc::_exit(EXIT_CODE_DEVICE_LOST) }
}

/// Why a forward gave nothing.
#[derive(Debug, thiserror::Error)]
enum ForwardFailure {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("{MODEL_PANICKED}")]
    Panicked,
    #[error("the model returned {values} numbers, expected {rows} rows of {width}")]
    WrongShape {
        values: usize,
        rows: usize,
        width: usize,
    },
}

impl ForwardFailure {
    /// Whether fewer texts may pass where these did not.
    fn may_be_one_text(&self) -> bool {
        !matches!(self, ForwardFailure::Backend(BackendError::NoSuchHead(_)))
    }

    fn row_error(&self) -> RowError {
        let code = match self {
            ForwardFailure::Backend(BackendError::OutOfMemory { .. }) => RowErrorCode::OutOfMemory,
            ForwardFailure::Backend(
                BackendError::NoSuchHead(_) | BackendError::Failed(_) | BackendError::DeviceLost(_),
            )
            | ForwardFailure::Panicked
            | ForwardFailure::WrongShape { .. } => RowErrorCode::ModelFailed,
        };
        RowError::new(code, self.to_string())
    }
}

fn forward(model: &Model, works: &[Work]) -> Result<Packed, ForwardFailure> {
    let batch = PackedBatch::pack(works.iter().map(|work| work.encoding.token_ids.as_slice()));
    let head = model.head();
    // A panic unwinds out of this call only: the backend is asked anew for each batch and shares
    // nothing with this thread that could be left half-changed.
    let outputs = catch_unwind(AssertUnwindSafe(|| {
        model.backend().forward(&batch, &[head])
    }));
    let outputs = outputs.map_err(|_| ForwardFailure::Panicked)??;
    let rows = match head {
        Head::Pooled | Head::SequenceLogits => batch.sequences(),
        Head::TokenLogits => batch.tokens(),
    };
    match outputs.into_iter().next() {
        Some(output) if output.width > 0 && output.values.len() == rows * output.width => {
            Ok(Packed {
                batch,
                head,
                output,
            })
        }
        output => {
            let output = output.unwrap_or(HeadOutput {
                width: 0,
                values: Vec::new(),
            });
            Err(ForwardFailure::WrongShape {
                values: output.values.len(),
                rows,
                width: output.width,
            })
        }
    }
}

/// A batch and what its head returned, of the right shape.
struct Packed {
    batch: PackedBatch,
    head: Head,
    output: HeadOutput,
}

impl Packed {
    /// The numbers that belong to sequence `index`.
    fn rows(&self, index: usize) -> &[f32] {
        match self.head {
            Head::Pooled | Head::SequenceLogits => self.output.row(index),
            Head::TokenLogits => {
                let start = self.batch.offsets[index] as usize * self.output.width;
                let end = self.batch.offsets[index + 1] as usize * self.output.width;
                &self.output.values[start..end]
            }
        }
    }
}

fn answer(model: &Model, works: Vec<Work>, packed: &Packed, metrics: &Metrics) {
    for (index, work) in works.into_iter().enumerate() {
        let rows = packed.rows(index);
        let predict = || model.predict(work.text(), &work.encoding, rows);
        let result = catch_unwind(AssertUnwindSafe(predict))
            .unwrap_or_else(|_| Err(ForwardFailure::Panicked.row_error()));
        match result {
            Ok(prediction) => {
                let tokens = work.encoding.token_ids.len();
                metrics.tokens.inc_by(tokens as u64);
                work.reply.send(tokens, Ok(prediction));
            }
            Err(error) => fail(work, error, metrics),
        }
    }
}

fn fail(work: Work, error: RowError, metrics: &Metrics) {
    metrics.note_row_error(error.code);
    let tokens = work.encoding.token_ids.len();
    work.reply.send(tokens, Err(error));
}
