//! An input file that is still what the plan says it is.

use std::ops::Range;

use bytes::Bytes;
use millrace_protocol::plan::InputFile;
use object_store::Error;

use super::ReadError;
use crate::store::{RangeError, StoreError, StoredObject, Stores};

/// A file whose entity tag is compared with the plan's on every read, so that no row of a changed
/// file ever passes for a row of the planned one.
#[derive(Debug, Clone)]
pub(crate) struct PinnedFile {
    /// URI as the plan lists it.
    pub(crate) uri: String,
    /// Stored size in bytes.
    pub(crate) size_bytes: u64,
    object: StoredObject,
}

impl PinnedFile {
    /// Names the file; nothing is read yet.
    pub(crate) fn open(stores: &Stores, input: &InputFile) -> Result<Self, ReadError> {
        let location = stores.open(&input.uri)?;
        Ok(Self {
            uri: input.uri.clone(),
            size_bytes: input.size_bytes,
            object: StoredObject::pinned(location, input.size_bytes, input.etag.clone()),
        })
    }

    /// Reads a range of stored bytes, all of it.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.object.read(range).await.map_err(|error| match error {
            RangeError::Changed { etag, size_bytes } => self.changed_to(&etag, size_bytes),
            RangeError::Store(Error::NotFound { .. }) => ReadError::NotFound {
                uri: self.uri.clone(),
            },
            RangeError::Store(error) => StoreError::at(&self.uri, error).into(),
        })
    }

    fn changed_to(&self, etag: &Option<String>, size_bytes: u64) -> ReadError {
        let name = |etag: &Option<String>, size: u64| match etag {
            Some(etag) => etag.clone(),
            None => format!("{size} bytes"),
        };
        ReadError::InputChanged {
            uri: self.uri.clone(),
            expected: name(&self.object.etag, self.size_bytes),
            found: name(etag, size_bytes),
        }
    }
}
