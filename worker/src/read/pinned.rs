//! An input file that is still what the plan says it is.

use std::ops::Range;

use bytes::Bytes;
use millrace_protocol::plan::InputFile;
use object_store::{Error, GetOptions, GetRange};

use super::ReadError;
use crate::store::{Location, StoreError, Stores};

/// A file whose entity tag is compared with the plan's on every read, so that no row of a changed
/// file ever passes for a row of the planned one.
#[derive(Debug, Clone)]
pub(crate) struct PinnedFile {
    /// URI as the plan lists it.
    pub(crate) uri: String,
    /// Stored size in bytes.
    pub(crate) size_bytes: u64,
    etag: Option<String>,
    location: Location,
}

impl PinnedFile {
    /// Names the file; nothing is read yet.
    pub(crate) fn open(stores: &Stores, input: &InputFile) -> Result<Self, ReadError> {
        Ok(Self {
            uri: input.uri.clone(),
            size_bytes: input.size_bytes,
            etag: input.etag.clone(),
            location: stores.open(&input.uri)?,
        })
    }

    /// Reads a range of stored bytes, all of it.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        let length = range.end - range.start;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: self.etag.clone(),
            ..GetOptions::default()
        };
        let Location { store, path } = &self.location;
        let result = match store.get_opts(path, options).await {
            Ok(result) => result,
            Err(Error::Precondition { .. }) => return Err(self.changed().await),
            Err(error) => return Err(self.failed(error)),
        };
        // Not every store heeds If-Match, so the reply is compared too.
        let found = (result.meta.e_tag.clone(), result.meta.size);
        if !self.is_same(&found) {
            return Err(self.changed_to(&found));
        }
        let bytes = result.bytes().await.map_err(|error| self.failed(error))?;
        if bytes.len() as u64 != length {
            return Err(self.changed().await);
        }
        Ok(bytes)
    }

    fn is_same(&self, (etag, size_bytes): &(Option<String>, u64)) -> bool {
        *size_bytes == self.size_bytes && (self.etag.is_none() || *etag == self.etag)
    }

    async fn changed(&self) -> ReadError {
        let Location { store, path } = &self.location;
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match store.get_opts(path, options).await {
            Ok(result) => self.changed_to(&(result.meta.e_tag, result.meta.size)),
            Err(error) => self.failed(error),
        }
    }

    fn changed_to(&self, (etag, size_bytes): &(Option<String>, u64)) -> ReadError {
        let name = |etag: &Option<String>, size: u64| match etag {
            Some(etag) => etag.clone(),
            None => format!("{size} bytes"),
        };
        ReadError::InputChanged {
            uri: self.uri.clone(),
            expected: name(&self.etag, self.size_bytes),
            found: name(etag, *size_bytes),
        }
    }

    fn failed(&self, error: Error) -> ReadError {
        match error {
            Error::NotFound { .. } => ReadError::NotFound {
                uri: self.uri.clone(),
            },
            error => StoreError::at(&self.uri, error).into(),
        }
    }
}
