//! Stores as they should not be: each test names the habits it is about.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    memory::InMemory, path::Path,
};

/// What is odd about a store.
#[derive(Debug, Default)]
pub(crate) struct Habits {
    /// It takes put-if-absent and overwrites all the same, as some servers do.
    pub(crate) overwrites: bool,
    /// It has no room for anything new below this prefix.
    pub(crate) full_below: Option<&'static str>,
    /// It allows nothing to be read below this prefix.
    pub(crate) denied_below: Option<&'static str>,
}

/// A store in memory with odd habits, which notes how much is read at a time.
#[derive(Debug)]
pub(crate) struct Odd {
    inner: InMemory,
    habits: Habits,
    largest_get_bytes: AtomicU64,
}

impl Odd {
    pub(crate) fn new(habits: Habits) -> Self {
        Self {
            inner: InMemory::new(),
            habits,
            largest_get_bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of the largest range that was asked for; a request without a range counts as endless.
    pub(crate) fn largest_get_bytes(&self) -> u64 {
        self.largest_get_bytes.load(Ordering::Relaxed)
    }

    fn check_room(&self, to: &Path) -> Result<()> {
        match self.habits.full_below {
            Some(prefix) if to.as_ref().starts_with(prefix) => Err(Error::Generic {
                store: "odd",
                source: "no space left".into(),
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("odd")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Odd {
    async fn put_opts(
        &self,
        to: &Path,
        bytes: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        self.check_room(to)?;
        if self.habits.overwrites {
            options.mode = PutMode::Overwrite;
        }
        self.inner.put_opts(to, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check_room(to)?;
        self.inner.put_multipart_opts(to, options).await
    }

    async fn get_opts(&self, from: &Path, options: GetOptions) -> Result<GetResult> {
        if let Some(prefix) = self.habits.denied_below
            && from.as_ref().starts_with(prefix)
        {
            return Err(Error::PermissionDenied {
                path: from.to_string(),
                source: "it is not allowed".into(),
            });
        }
        let bytes = match &options.range {
            _ if options.head => 0,
            Some(GetRange::Bounded(range)) => range.end - range.start,
            Some(GetRange::Offset(_) | GetRange::Suffix(_)) | None => u64::MAX,
        };
        self.largest_get_bytes.fetch_max(bytes, Ordering::Relaxed);
        self.inner.get_opts(from, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
