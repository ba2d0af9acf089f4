//! Passes a child's standard error on from a thread of its own: whoever should read ours may not,
//! and the thread that supervises must never wait for that.

use std::{
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use tokio::sync::oneshot;

/// Chunks of up to 4 KiB that wait to be written; what comes while so many wait is left out.
const CHUNKS_MAX: usize = 256;

/// Bytes that are held back at most.
const HELD_BYTES_MAX: usize = 64 << 10;

/// How long the last chunks may take to be written at the end.
const FLUSH_DEADLINE: Duration = Duration::from_millis(200);

/// A cheap handle on the writing thread, which ends after the last one is dropped.
#[derive(Debug, Clone)]
pub struct Forward {
    chunks: SyncSender<Vec<u8>>,
    left_out_bytes: Arc<AtomicU64>,
    /// What is held back until it is to be passed on; none from then on.
    held: Arc<Mutex<Option<Vec<u8>>>>,
}

/// Tells when all that was passed on is written.
pub struct Flushed(oneshot::Receiver<()>);

impl Forward {
    /// Starts a thread that writes to `writer`: if it `holds`, nothing before [`Forward::release`].
    pub fn start(
        writer: impl Write + Send + 'static,
        holds: bool,
    ) -> std::io::Result<(Self, Flushed)> {
        let (sender, chunks) = sync_channel(CHUNKS_MAX);
        let (flushed, flush) = oneshot::channel();
        let left_out_bytes = Arc::new(AtomicU64::new(0));
        let left_out = left_out_bytes.clone();
        std::thread::Builder::new()
            .name("child-stderr".into())
            .spawn(move || {
                write_all(writer, &chunks, &left_out);
                let _ = flushed.send(());
            })?;
        let forward = Self {
            chunks: sender,
            left_out_bytes,
            held: Arc::new(Mutex::new(holds.then(Vec::new))),
        };
        Ok((forward, Flushed(flush)))
    }

    /// Hands bytes to the thread. Never waits: bytes that find no room are counted and left out.
    pub fn pass_on(&self, bytes: &[u8]) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(held) if held.len() + bytes.len() <= HELD_BYTES_MAX => held.extend(bytes),
            Some(_) => self.leave_out(bytes),
            None => self.send(bytes),
        }
    }

    /// Passes on what was held back, and from now on everything.
    pub fn release(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.take().filter(|held| !held.is_empty()) {
            self.send(&held);
        }
    }

    fn send(&self, bytes: &[u8]) {
        if self.chunks.try_send(bytes.to_vec()).is_err() {
            self.leave_out(bytes);
        }
    }

    fn leave_out(&self, bytes: &[u8]) {
        let count = bytes.len() as u64;
        self.left_out_bytes.fetch_add(count, Ordering::Relaxed);
    }
}

impl Flushed {
    /// Waits until everything is written, once every [`Forward`] is dropped; not for a reader that
    /// does not read.
    pub async fn wait(self) {
        let _ = tokio::time::timeout(FLUSH_DEADLINE, self.0).await;
    }
}

fn write_all(mut writer: impl Write, chunks: &Receiver<Vec<u8>>, left_out_bytes: &AtomicU64) {
    for chunk in chunks {
        // Whoever closed our own standard error does not want to read it.
        let _ = writer.write_all(&chunk);
        let left_out = left_out_bytes.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let _ = writeln!(
                writer,
                "[{left_out} bytes for which there was no room are left out]"
            );
        }
    }
    let _ = writer.flush();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Writes into memory, each time only once it may.
    struct Gated {
        may_write: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // A gate that is gone stands open.
            let _ = self.may_write.recv();
            self.written.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_nobody_up_and_learns_what_it_missed() {
        let (open, may_write) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let gated = Gated {
            may_write,
            written: written.clone(),
        };
        let (forward, flushed) = Forward::start(gated, false).unwrap();
        for _ in 0..2 * CHUNKS_MAX {
            forward.pass_on(b"line\n");
        }
        drop(open);
        drop(forward);
        flushed.wait().await;
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let lines = written.lines().filter(|line| *line == "line").count();
        assert!((CHUNKS_MAX..2 * CHUNKS_MAX).contains(&lines), "{lines}");
        assert!(written.contains("are left out]"), "{written}");
    }

    #[tokio::test]
    async fn what_is_held_back_is_written_once_it_is_released_and_never_otherwise() {
        for is_released in [true, false] {
            let (_, may_write) = mpsc::channel();
            let written = Arc::new(Mutex::new(Vec::new()));
            let gated = Gated {
                may_write,
                written: written.clone(),
            };
            let (forward, flushed) = Forward::start(gated, true).unwrap();
            forward.pass_on(b"before\n");
            if is_released {
                forward.release();
                forward.pass_on(b"after\n");
            }
            drop(forward);
            flushed.wait().await;
            let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
            let expected = if is_released { "before\nafter\n" } else { "" };
            assert_eq!(written, expected);
        }
    }
}
