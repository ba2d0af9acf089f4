//! Settings of the process and of each thread that libtorch runs on.

use std::any::Any;
use std::cell::Cell;
use std::sync::Once;

use super::error::{first_line, is_device_lost, is_out_of_memory};
use crate::backend::{BackendError, MODEL_PANICKED, PackedBatch};

/// How the engine's threads are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Batches computed at a time.
    pub callers: usize,
    /// Threads that libtorch uses inside one batch.
    pub per_caller: usize,
}

impl Threads {
    /// Most batches at a time: each holds its own activations.
    const CALLERS_MAX: usize = 4;

    /// Shares out `threads`. Whole batches side by side beat one batch cut among threads, which
    /// must meet after every operation.
    pub fn share(threads: usize) -> Self {
        let threads = threads.max(1);
        let callers = threads.min(Self::CALLERS_MAX);
        Self {
            callers,
            per_caller: threads / callers,
        }
    }
}

/// Keeps freed memory in the process, once, before the first tensor is made.
///
/// Every operation of a batch allocates its output, megabytes each. By default glibc maps each
/// anew and gives it back when freed, so that every batch pays again for the same pages being
/// zeroed and faulted in; kept on the heap they are reused.
pub fn keep_freed_memory() {
    static ONCE: Once = Once::new();
    #[cfg(target_env = "gnu")]
    ONCE.call_once(|| {
        const KEEP_BYTES: libc::c_int = 512 * 1024 * 1024;
        const GROW_BYTES: libc::c_int = 64 * 1024 * 1024;
        // SAFETY: mallopt only sets parameters of the allocator, under its own lock.
        let is_set = unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES) == 1
                && libc::mallopt(libc::M_TOP_PAD, GROW_BYTES) == 1
        };
        if !is_set {
            tracing::warn!("the allocator refused its settings; batches will be slower");
        }
    });
    #[cfg(not(target_env = "gnu"))]
    ONCE.call_once(|| {});
}

/// Runs `compute` on the calling thread as libtorch should be run: without gradients, with
/// `threads` threads, and with panics and libtorch's exceptions turned into errors.
pub fn guarded<T>(
    threads: Threads,
    batch: &PackedBatch,
    compute: impl FnOnce() -> Result<T, tch::TchError>,
) -> Result<T, BackendError> {
    set_threads(threads.per_caller);
    // The tensors of a failed batch are dropped with it and the weights are only read, so nothing
    // half-changed is seen afterwards.
    let compute = std::panic::AssertUnwindSafe(|| {
        let _guard = tch::no_grad_guard();
        compute()
    });
    let message = match std::panic::catch_unwind(compute) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        // A panic of tch holds what libtorch said; any other may quote the text.
        Err(payload) => match words_of(&*payload) {
            words if is_out_of_memory(words) || is_device_lost(words) => words.to_owned(),
            _ => MODEL_PANICKED.to_owned(),
        },
    };
    if is_out_of_memory(&message) {
        return Err(BackendError::OutOfMemory {
            sequences: batch.sequences(),
            tokens: batch.tokens(),
        });
    }
    if is_device_lost(&message) {
        return Err(BackendError::DeviceLost(first_line(&message)));
    }
    Err(BackendError::Failed(first_line(&message)))
}

/// The words of a panic that was caught; panics carry text unless somebody chose otherwise.
fn words_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
}

/// libtorch's number of threads is partly the calling thread's own, so each caller sets it, once.
fn set_threads(threads: usize) {
    thread_local! {
        static CURRENT: Cell<usize> = const { Cell::new(0) };
    }
    if CURRENT.replace(threads) != threads {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_shared_among_whole_batches_first() {
        let check = |threads, callers, per_caller| {
            assert_eq!(
                Threads::share(threads),
                Threads {
                    callers,
                    per_caller
                }
            );
        };
        check(0, 1, 1);
        check(1, 1, 1);
        check(2, 2, 1);
        check(4, 4, 1);
        check(16, 4, 4);
    }

    #[test]
    fn a_panic_and_a_lack_of_memory_are_errors() {
        let batch = PackedBatch::pack([[1_u32, 2].as_slice()]);
        let threads = Threads::share(1);
        let panicked = guarded(threads, &batch, || -> Result<(), _> { panic!("shape") });
        assert!(matches!(panicked, Err(BackendError::Failed(text)) if text == MODEL_PANICKED));
        let starved = guarded(threads, &batch, || -> Result<(), _> {
            Err(tch::TchError::Torch(
                "CUDA out of memory. Tried to …".into(),
            ))
        });
        assert!(matches!(
            starved,
            Err(BackendError::OutOfMemory {
                sequences: 1,
                tokens: 2
            })
        ));
    }
}
