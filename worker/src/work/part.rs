//! Writes one file of an attempt: a part or its errors.
//!
//! Nothing of it is visible to readers until a commit names it, so a file that is never finished
//! harms nobody; dropping one aborts its upload.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use object_store::ObjectStoreExt;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::store::{Location, StoreError};

/// Bytes of one request of a multipart upload: 10,000 of them, the most S3 takes, are a file of
/// 80 GB.
const UPLOAD_BYTES: usize = 8 << 20;
/// Requests of an upload in flight, each of which holds its bytes.
const UPLOADS_IN_FLIGHT_MAX: usize = 2;

/// One file being written, hashed on the way.
pub struct PartWriter {
    location: Location,
    path: Path,
    relative_path: String,
    sha256: Sha256,
    stored_bytes: u64,
    /// `None` until there is something to write: an empty file is never made.
    upload: Option<BufWriter>,
}

/// A file that was written whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenPart {
    /// Path below the output.
    pub relative_path: String,
    /// SHA-256 of the stored bytes, hexadecimal.
    pub sha256: String,
}

impl PartWriter {
    /// A file at `relative_path` below `output`; nothing is stored yet.
    pub fn new(output: &Location, relative_path: String) -> Self {
        Self {
            location: output.clone(),
            path: output.below(&relative_path),
            relative_path,
            sha256: Sha256::new(),
            stored_bytes: 0,
            upload: None,
        }
    }

    /// Appends bytes, which may be uploaded later.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sha256.update(&bytes);
        self.stored_bytes += bytes.len() as u64;
        let upload = self
            .upload
            .get_or_insert_with(|| upload(&self.location, &self.path));
        upload
            .put(bytes)
            .await
            .map_err(|source| StoreError::at(&self.path, source))
    }

    /// Bytes that were appended so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Makes the file durable. `None` if nothing was ever written.
    pub async fn finish(mut self) -> Result<Option<WrittenPart>, StoreError> {
        let Some(mut upload) = self.upload.take() else {
            return Ok(None);
        };
        // An upload that fails to complete aborts itself; it must not be touched again.
        upload
            .shutdown()
            .await
            .map_err(|error| upload_failed(&self.path, error))?;
        let sha256 = HEXLOWER.encode(&std::mem::take(&mut self.sha256).finalize());
        Ok(Some(WrittenPart {
            relative_path: std::mem::take(&mut self.relative_path),
            sha256,
        }))
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        let path = self.path.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = upload.abort().await {
                    let error: &dyn std::error::Error = &StoreError::at(&path, error);
                    tracing::debug!(error, "an abandoned upload could not be aborted");
                }
            });
        }
    }
}

/// A file that is uploaded while it is written, within [`UPLOAD_BYTES`] and
/// [`UPLOADS_IN_FLIGHT_MAX`].
pub fn upload(location: &Location, path: &Path) -> BufWriter {
    BufWriter::with_capacity(location.store.clone(), path.clone(), UPLOAD_BYTES)
        .with_max_concurrency(UPLOADS_IN_FLIGHT_MAX)
}

/// Removes a file of an attempt that lost its race; its absence is all that matters.
pub async fn discard(output: &Location, relative_path: &str) {
    remove(output, &output.below(relative_path)).await;
}

/// Removes a file that nobody needs any more; one that stays does no harm.
pub async fn remove(output: &Location, path: &Path) {
    if let Err(error) = output.store.delete(path).await {
        let error: &dyn std::error::Error = &StoreError::at(path, error);
        tracing::debug!(error, "a file that nobody needs could not be removed");
    }
}

/// What a failed upload means: the store's own error where the stream carried it.
pub fn upload_failed(path: &Path, error: std::io::Error) -> StoreError {
    match error.downcast::<object_store::Error>() {
        Ok(source) => StoreError::at(path, source),
        Err(error) => {
            let source = Box::new(error);
            StoreError::at(
                path,
                object_store::Error::Generic {
                    store: "upload",
                    source,
                },
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::store::odd::{Habits, Odd};

    #[tokio::test]
    async fn a_file_that_cannot_be_finished_is_an_error_and_not_a_panic() {
        static PANICKED: AtomicBool = AtomicBool::new(false);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.to_string().contains("shut down") {
                PANICKED.store(true, Ordering::Relaxed);
            }
            before(panic);
        }));
        let location = Location {
            store: Arc::new(Odd::new(Habits {
                full_below: Some("out"),
                ..Habits::default()
            })),
            path: Path::from("out"),
            name: "out".to_owned(),
            uploads: None,
        };
        let mut part = PartWriter::new(&location, "parts/a.jsonl".to_owned());
        part.write(Bytes::from("line\n")).await.unwrap();
        let error = part.finish().await.unwrap_err();
        assert!(matches!(error, StoreError::Store { .. }), "{error}");
        // What a dropped writer leaves to the runtime has its turn.
        tokio::task::yield_now().await;
        assert!(!PANICKED.load(Ordering::Relaxed));
    }
}
