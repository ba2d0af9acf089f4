//! One object of any size, read in ranges. Each range is a request of its own, so that none lasts
//! longer than a client bears with, and the entity tag shows that all of them met the same object.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, path::Path};

use super::{Location, StoreError};

/// Bytes of one range of a stream: far less than the slowest usable store sends within a request's
/// time-out.
const RANGE_BYTES: u64 = 4 << 20;
/// Ranges of a stream that are fetched at a time.
const RANGES_IN_FLIGHT_MAX: usize = 2;

/// An object, pinned to what it was when it was first looked at.
#[derive(Debug, Clone)]
pub(crate) struct StoredObject {
    /// Stored size in bytes.
    pub(crate) size_bytes: u64,
    /// Entity tag, where the store has them.
    pub(crate) etag: Option<String>,
    store: Arc<dyn ObjectStore>,
    path: Path,
}

/// Why a range could not be read.
#[derive(Debug)]
pub(crate) enum RangeError {
    /// The object is another one now.
    Changed {
        /// Its entity tag now.
        etag: Option<String>,
        /// Its size now.
        size_bytes: u64,
    },
    /// The store failed.
    Store(Error),
}

impl StoredObject {
    /// An object whose size and entity tag are known. Nothing is asked of the store.
    pub(crate) fn pinned(location: Location, size_bytes: u64, etag: Option<String>) -> Self {
        let Location {
            store,
            path,
            name: _,
            uploads: _,
        } = location;
        Self {
            size_bytes,
            etag,
            store,
            path,
        }
    }

    /// Looks at the object at `path`.
    pub(crate) async fn open(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Self, Error> {
        let found = store.head(path).await?;
        Ok(Self {
            size_bytes: found.size,
            etag: found.e_tag,
            store: Arc::clone(store),
            path: path.clone(),
        })
    }

    /// Reads a range of stored bytes, all of it.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, RangeError> {
        let length = range.end - range.start;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: self.etag.clone(),
            ..GetOptions::default()
        };
        let found = match self.store.get_opts(&self.path, options).await {
            Ok(found) => found,
            Err(Error::Precondition { .. }) => return Err(self.changed().await),
            Err(error) => return Err(RangeError::Store(error)),
        };
        // Not every store heeds If-Match, so the reply is compared too.
        let (etag, size_bytes) = (found.meta.e_tag.clone(), found.meta.size);
        if size_bytes != self.size_bytes || (self.etag.is_some() && etag != self.etag) {
            return Err(RangeError::Changed { etag, size_bytes });
        }
        let bytes = found.bytes().await.map_err(RangeError::Store)?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(self.changed().await),
        }
    }

    /// The whole object from its start.
    pub(crate) fn stream(self) -> impl Stream<Item = Result<Bytes, StoreError>> + Send {
        let starts = (0..self.size_bytes).step_by(RANGE_BYTES as usize);
        let object = Arc::new(self);
        stream::iter(starts)
            .map(move |start| {
                let object = Arc::clone(&object);
                async move {
                    let range = start..object.size_bytes.min(start + RANGE_BYTES);
                    let path = &object.path;
                    object.read(range).await.map_err(|error| match error {
                        RangeError::Changed { .. } => StoreError::Changed {
                            path: path.to_string(),
                        },
                        RangeError::Store(source) => StoreError::at(path, source),
                    })
                }
            })
            .buffered(RANGES_IN_FLIGHT_MAX)
    }

    async fn changed(&self) -> RangeError {
        match self.store.head(&self.path).await {
            Ok(found) => RangeError::Changed {
                etag: found.e_tag,
                size_bytes: found.size,
            },
            Err(error) => RangeError::Store(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::store::odd::{Habits, Odd};

    #[tokio::test]
    async fn an_object_of_any_size_is_read_in_requests_of_bounded_size() {
        let odd = Arc::new(Odd::new(Habits::default()));
        let store: Arc<dyn ObjectStore> = odd.clone();
        let path = Path::from("large");
        let content: Vec<u8> = (0..RANGE_BYTES * 2 + 5).map(|byte| byte as u8).collect();
        store.put(&path, content.clone().into()).await.unwrap();
        let object = StoredObject::open(&store, &path).await.unwrap();
        let read: Vec<Bytes> = object.stream().try_collect().await.unwrap();
        assert!(read.concat() == content);
        assert_eq!(odd.largest_get_bytes(), RANGE_BYTES);
    }

    #[tokio::test]
    async fn an_object_that_is_replaced_while_it_is_read_is_noticed() {
        let store: Arc<dyn ObjectStore> = Arc::new(Odd::new(Habits::default()));
        let path = Path::from("replaced");
        store.put(&path, "first".into()).await.unwrap();
        let object = StoredObject::open(&store, &path).await.unwrap();
        store.put(&path, "other".into()).await.unwrap();
        let error = object.stream().try_collect::<Vec<_>>().await.unwrap_err();
        assert!(matches!(error, StoreError::Changed { .. }), "{error}");
    }
}
