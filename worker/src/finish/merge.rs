//! Writes all parts into one file, in input order, streaming.

use futures::TryStreamExt;
use millrace_protocol::layout;
use millrace_protocol::manifest::LivePart;
use object_store::buffered::BufWriter;
use tokio::io::AsyncWriteExt;

use super::FinishError;
use crate::store::{Location, StoreError, StoredObject};
use crate::work::part::{self, upload_failed};

/// Merges `live` parts; returns the merged file's path below the output. Parts are JSON lines, or
/// whole Zstandard frames of them, so end to end they are a valid file of the same kind.
pub async fn merge(
    output: &Location,
    live: &[LivePart],
    zstd: bool,
) -> Result<String, FinishError> {
    let merged = layout::merged(zstd);
    let path = output.below(&merged);
    let mut upload = part::upload(output, &path);
    let written = append_all(output, live, &mut upload).await;
    match written {
        Ok(()) => {
            upload
                .shutdown()
                .await
                .map_err(|error| upload_failed(&path, error))?;
            Ok(merged)
        }
        Err(error) => {
            // Nothing of an aborted upload is visible; the reason it failed matters more.
            upload.abort().await.ok();
            Err(error)
        }
    }
}

async fn append_all(
    output: &Location,
    live: &[LivePart],
    upload: &mut BufWriter,
) -> Result<(), FinishError> {
    for commit in live.iter().map(|part| &part.commit) {
        let Some(part) = &commit.part else {
            continue;
        };
        let path = output.below(part);
        let failed = |source| StoreError::at(&path, source);
        let found = match StoredObject::open(&output.store, &path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(FinishError::PartMissing {
                    shard: commit.shard,
                    path: part.clone(),
                });
            }
            Err(source) => return Err(failed(source).into()),
        };
        let mut ranges = std::pin::pin!(found.stream());
        while let Some(bytes) = ranges.try_next().await? {
            upload.put(bytes).await.map_err(failed)?;
        }
    }
    Ok(())
}
