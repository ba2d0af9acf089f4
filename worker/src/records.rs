//! Stored files of records of one length, read in pieces.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};

use crate::store::{Location, StoreError, StoredObject};

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// There is no such file.
    #[error("{0} is not there")]
    NotFound(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The records of a file below `output`, in pieces of some megabytes.
pub async fn read<const N: usize>(
    output: &Location,
    relative_path: &str,
) -> Result<impl Stream<Item = Result<Vec<[u8; N]>, StoreError>> + Send + use<N>, RecordsError> {
    let path = output.below(relative_path);
    let object = match StoredObject::open(&output.store, &path).await {
        Ok(object) => object,
        Err(object_store::Error::NotFound { .. }) => {
            return Err(RecordsError::NotFound(path.to_string()));
        }
        Err(source) => return Err(StoreError::at(&path, source).into()),
    };
    let mut begun = BytesMut::new();
    let whole = move |bytes: Bytes| {
        begun.extend_from_slice(&bytes);
        let (records, _) = begun.as_chunks::<N>();
        let records = records.to_vec();
        let _ = begun.split_to(records.len() * N);
        records
    };
    Ok(object.stream().map_ok(whole).boxed())
}
