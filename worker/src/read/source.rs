//! The decoded bytes of a file as windows of bounded size.

use std::{io, pin::Pin};

use async_compression::{
    tokio::bufread::{GzipDecoder, ZstdDecoder},
    zstd::DParameter,
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use millrace_protocol::plan::Compression;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;

use super::{ReadError, pinned::PinnedFile};

/// Bytes fetched at a time: large enough that a remote store's latency does not dominate.
const WINDOW_BYTES: u64 = 1 << 20;
/// Bytes fetched first for a row that reaches beyond the end of its shard.
const TAIL_BYTES: u64 = 64 << 10;
/// Bytes decoded at a time.
const DECODED_BYTES: usize = 256 << 10;
/// The largest window that `zstd` itself accepts without a flag: 2^27 bytes. A frame that asks for
/// more memory is refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Where windows come from.
pub(crate) enum Source {
    /// Stored bytes as they are.
    Plain(Windows),
    /// Decoded bytes.
    Decoded(Decoded),
}

impl Source {
    /// The bytes of a file from `start` on, decoded. `end` is where the caller will probably stop;
    /// compressed files are always read whole.
    pub(crate) fn new(file: PinnedFile, compression: Compression, start: u64, end: u64) -> Self {
        let uri = file.uri.clone();
        if compression == Compression::None {
            return Self::Plain(Windows::new(file, start, end));
        }
        let stored = StreamReader::new(Box::pin(io_stream(Windows::new(file, 0, u64::MAX))));
        let (encoding, decoder): (_, Pin<Box<dyn AsyncRead + Send>>) = match compression {
            Compression::Gzip => {
                let mut decoder = GzipDecoder::new(stored);
                decoder.multiple_members(true);
                ("gzip", Box::pin(decoder))
            }
            Compression::Zstd | Compression::None => {
                let limit = DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX);
                let mut decoder = ZstdDecoder::with_params(stored, &[limit]);
                decoder.multiple_members(true);
                ("zstd", Box::pin(decoder))
            }
        };
        Self::Decoded(Decoded {
            uri,
            encoding,
            decoder,
        })
    }

    /// The next window; `None` at the end of the file. Only the last window may be short.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        match self {
            Self::Plain(windows) => windows.next().await,
            Self::Decoded(decoded) => decoded.next().await,
        }
    }
}

/// Stored bytes, fetched window by window.
pub(crate) struct Windows {
    file: PinnedFile,
    at: u64,
    end: u64,
    tail_bytes: u64,
}

impl Windows {
    /// Windows from `start` to the end of the file. Up to `end` they are large; beyond it they
    /// begin small, because only the rest of one row is wanted there.
    pub(crate) fn new(file: PinnedFile, start: u64, end: u64) -> Self {
        Self {
            end: end.min(file.size_bytes),
            at: start,
            file,
            tail_bytes: TAIL_BYTES,
        }
    }

    /// The next window; `None` at the end of the file.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let length = if self.at < self.end {
            // The start of the tail comes along, so that most shards need no further request.
            let left = self.end - self.at;
            if left <= WINDOW_BYTES {
                left + 4096
            } else {
                WINDOW_BYTES
            }
        } else {
            let length = self.tail_bytes;
            self.tail_bytes = (length * 2).min(WINDOW_BYTES);
            length
        };
        let until = self.at.saturating_add(length).min(self.file.size_bytes);
        if self.at >= until {
            return Ok(None);
        }
        let bytes = self.file.read(self.at..until).await?;
        self.at = until;
        Ok(Some(bytes))
    }
}

fn io_stream(windows: Windows) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(windows, |mut windows| async move {
        let window = windows.next().await.map_err(io::Error::other)?;
        Ok(window.map(|window| (window, windows)))
    })
}

/// Decoded bytes of a compressed file.
pub(crate) struct Decoded {
    uri: String,
    encoding: &'static str,
    decoder: Pin<Box<dyn AsyncRead + Send>>,
}

impl Decoded {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let mut window = BytesMut::with_capacity(DECODED_BYTES);
        while window.len() < DECODED_BYTES {
            let space = DECODED_BYTES - window.len();
            let mut part = (&mut self.decoder).take(space as u64);
            if part
                .read_buf(&mut window)
                .await
                .map_err(|error| self.failed(error))?
                == 0
            {
                break;
            }
        }
        Ok((!window.is_empty()).then(|| window.freeze()))
    }

    fn failed(&self, error: io::Error) -> ReadError {
        let (uri, encoding) = (self.uri.clone(), self.encoding);
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return ReadError::Truncated { uri, encoding };
        }
        match error.downcast::<ReadError>() {
            Ok(read_error) => read_error,
            Err(error) => ReadError::Decode {
                uri,
                encoding,
                reason: error.to_string(),
            },
        }
    }
}
