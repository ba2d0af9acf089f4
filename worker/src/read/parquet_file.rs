//! A pinned file as the Parquet decoder wants it: blocking, by ranges.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};
use tokio::runtime::Handle;

use super::{ReadError, pinned::PinnedFile};

/// Bytes fetched at least: page headers are tiny, and the next one is usually close.
const FETCH_BYTES_MIN: u64 = 64 << 10;
/// Windows kept: one for each of the few columns that are read side by side.
const WINDOWS_MAX: usize = 8;
/// A longer window is handed out but not kept.
const WINDOW_BYTES_MAX: u64 = 1 << 20;
/// Longest footer. Decoded, it takes a multiple of this.
const FOOTER_BYTES_MAX: u32 = 32 << 20;

/// Blocks on every read, so it belongs on a thread that may: never on the runtime's own.
#[derive(Clone)]
pub(super) struct ParquetFile {
    shared: Arc<Shared>,
}

struct Shared {
    file: PinnedFile,
    runtime: Handle,
    windows: Mutex<VecDeque<(u64, Bytes)>>,
    /// Why a read failed: the decoder passes on the words of an error, not its kind.
    failure: Mutex<Option<ReadError>>,
}

impl ParquetFile {
    /// Wraps a file; its reads run on `runtime`.
    pub(super) fn new(file: PinnedFile, runtime: Handle) -> Self {
        let (windows, failure) = (Mutex::default(), Mutex::default());
        Self {
            shared: Arc::new(Shared {
                file,
                runtime,
                windows,
                failure,
            }),
        }
    }

    /// URI of the file.
    pub(super) fn uri(&self) -> &str {
        &self.shared.file.uri
    }

    /// Reads the footer.
    pub(super) fn footer(
        &self,
        options: ArrowReaderOptions,
    ) -> Result<ArrowReaderMetadata, ReadError> {
        let PinnedFile {
            uri, size_bytes, ..
        } = &self.shared.file;
        let decode = |reason: &str| ReadError::Decode {
            uri: uri.clone(),
            encoding: "Parquet",
            reason: reason.into(),
        };
        if *size_bytes < 12 {
            return Err(ReadError::Truncated {
                uri: uri.clone(),
                encoding: "Parquet",
            });
        }
        let first = self.bytes(0, 4).map_err(|error| self.explain(error))?;
        if &first[..] != b"PAR1" {
            return Err(decode("it does not begin with PAR1"));
        }
        let last = self
            .bytes(size_bytes - 8, 8)
            .map_err(|error| self.explain(error))?;
        match &last[4..] {
            b"PAR1" => {}
            b"PARE" => return Err(decode("its footer is encrypted, which is not supported")),
            _ => {
                return Err(ReadError::Truncated {
                    uri: uri.clone(),
                    encoding: "Parquet",
                });
            }
        }
        let footer_bytes = u32::from_le_bytes([last[0], last[1], last[2], last[3]]);
        if footer_bytes > FOOTER_BYTES_MAX {
            return Err(decode("its footer is longer than 32 MiB"));
        }
        ArrowReaderMetadata::load(self, options).map_err(|error| self.explain(error))
    }

    /// What an error of the decoder means: first of all, whether a read failed.
    pub(super) fn explain(&self, error: impl std::fmt::Display) -> ReadError {
        lock(&self.shared.failure)
            .take()
            .unwrap_or_else(|| ReadError::Decode {
                uri: self.shared.file.uri.clone(),
                encoding: "Parquet",
                reason: error.to_string(),
            })
    }

    fn bytes(&self, start: u64, length: u64) -> Result<Bytes, ParquetError> {
        let Shared {
            file,
            runtime,
            windows,
            failure,
        } = &*self.shared;
        let end = start
            .checked_add(length)
            .filter(|end| *end <= file.size_bytes);
        let Some(end) = end else {
            *lock(failure) = Some(ReadError::Truncated {
                uri: file.uri.clone(),
                encoding: "Parquet",
            });
            return Err(ParquetError::EOF(
                "a page lies beyond the end of the file".into(),
            ));
        };
        for (offset, window) in lock(windows).iter() {
            if *offset <= start && end <= offset + window.len() as u64 {
                let from = (start - offset) as usize;
                return Ok(window.slice(from..from + length as usize));
            }
        }
        // The next page's header comes along.
        let until = end.saturating_add(FETCH_BYTES_MIN).min(file.size_bytes);
        let window = match runtime.block_on(file.read(start..until)) {
            Ok(window) => window,
            Err(error) => {
                let words = error.to_string();
                *lock(failure) = Some(error);
                return Err(ParquetError::General(words));
            }
        };
        let bytes = window.slice(..length as usize);
        let mut windows = lock(windows);
        if windows.len() == WINDOWS_MAX {
            windows.pop_front();
        }
        // What is kept must not hold on to a large page.
        let kept = if until - start <= WINDOW_BYTES_MAX {
            (start, window)
        } else {
            (end, Bytes::copy_from_slice(&window[length as usize..]))
        };
        windows.push_back(kept);
        Ok(bytes)
    }
}

impl Length for ParquetFile {
    fn len(&self) -> u64 {
        self.shared.file.size_bytes
    }
}

impl ChunkReader for ParquetFile {
    type T = ParquetRead;

    fn get_read(&self, start: u64) -> Result<ParquetRead, ParquetError> {
        Ok(ParquetRead {
            file: self.clone(),
            at: start,
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.bytes(start, length as u64)
    }
}

/// Reads from an offset on.
pub(super) struct ParquetRead {
    file: ParquetFile,
    at: u64,
}

impl Read for ParquetRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.len().saturating_sub(self.at);
        let length = left.min(buffer.len() as u64);
        if length == 0 {
            return Ok(0);
        }
        let bytes = self.file.bytes(self.at, length).map_err(io::Error::other)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at += length;
        Ok(bytes.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
