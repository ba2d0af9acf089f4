//! Whole small objects: plans, commit records, manifests.

use std::{ops::Range, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use object_store::{
    Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path,
};

use super::StoreError;

/// What a create found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// Nothing was there; now the bytes are.
    New,
    /// Something is there. It may be what an earlier try of this same call wrote, if its reply was
    /// lost, so the caller reads it and compares.
    Existed,
}

/// Writes an object unless one is there. Ambiguous failures are tried again, because a create that
/// already landed shows as [`Created::Existed`].
pub async fn create(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: impl Into<Bytes>,
) -> Result<Created, StoreError> {
    let payload = PutPayload::from_bytes(bytes.into());
    let put = || async {
        let options = PutOptions::from(PutMode::Create);
        match store.put_opts(path, payload.clone(), options).await {
            Ok(_) => Ok(Created::New),
            // S3 answers a conflict also while another create is under way, and that one may fail:
            // only an object that can be seen settles it.
            Err(Error::AlreadyExists { source, .. }) => match store.head(path).await {
                Ok(_) => Ok(Created::Existed),
                Err(Error::NotFound { .. }) => Err(Error::Generic {
                    store: "create",
                    source,
                }),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        }
    };
    retried(path, put).await
}

/// Reads an object, or `None` if there is none.
pub async fn read(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Option<Bytes>, StoreError> {
    let get = || async {
        match store.get_opts(path, GetOptions::default()).await {
            Ok(found) => found.bytes().await.map(Some),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    retried(path, get).await
}

/// Whether there is an object. Nothing of it is read.
pub async fn exists(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<bool, StoreError> {
    let head = || async {
        match store.head(path).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    };
    retried(path, head).await
}

/// Reads a range of an object, or `None` if there is none.
pub async fn read_range(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    range: Range<u64>,
) -> Result<Option<Bytes>, StoreError> {
    let get = || async {
        match store.get_range(path, range.clone()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    retried(path, get).await
}

/// Writes an object whole, over whatever is there.
pub async fn replace(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: impl Into<Bytes>,
) -> Result<(), StoreError> {
    let payload = PutPayload::from_bytes(bytes.into());
    retried(path, || async {
        store.put(path, payload.clone()).await.map(|_| ())
    })
    .await
}

/// Makes sure that a second create of the same object fails. A store that overwrites instead would
/// let two workers commit the same shard.
pub async fn probe_create_only(
    store: &Arc<dyn ObjectStore>,
    prefix: &Path,
) -> Result<(), StoreError> {
    let path = prefix
        .clone()
        .join("_millrace")
        .join(format!("probe-{:016x}", rand::random::<u64>()));
    create(store, &path, "first").await?;
    let second = create(store, &path, "second").await;
    let content = read(store, &path).await;
    retried(&path, || async { store.delete(&path).await }).await?;
    match (second?, content?) {
        (Created::Existed, Some(content)) if &content[..] == b"first" => Ok(()),
        _ => Err(StoreError::NoPutIfAbsent {
            path: path.to_string(),
        }),
    }
}

/// Tries again what may pass on another try. The client has its own retries for replies that
/// arrive; these are for the requests whose reply never does.
async fn retried<T, F, Fut>(path: &Path, request: F) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let policy = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_max_times(6)
        .with_jitter();
    let mut request = request;
    let attempt = || {
        let future = request();
        async { future.await.map_err(|source| StoreError::at(path, source)) }
    };
    attempt
        .retry(policy)
        .when(|error: &StoreError| !error.is_permanent())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        StoreOptions, Stores,
        odd::{Habits, Odd},
    };

    #[tokio::test]
    async fn the_first_create_wins_on_a_local_disk() {
        let folder = tempfile::tempdir().unwrap();
        let stores = Stores::new(StoreOptions::default());
        let location = stores
            .open(&format!("file://{}/out", folder.path().display()))
            .unwrap();
        probe_create_only(&location.store, &location.path)
            .await
            .unwrap();
        let path = location.below("a/commit.json");
        assert_eq!(read(&location.store, &path).await.unwrap(), None);
        assert_eq!(
            create(&location.store, &path, "one").await.unwrap(),
            Created::New
        );
        assert_eq!(
            create(&location.store, &path, "two").await.unwrap(),
            Created::Existed
        );
        assert_eq!(read(&location.store, &path).await.unwrap().unwrap(), "one");
        replace(&location.store, &path, "three").await.unwrap();
        assert_eq!(
            read(&location.store, &path).await.unwrap().unwrap(),
            "three"
        );
    }

    #[tokio::test]
    async fn whether_an_object_is_there_is_seen_without_reading_it() {
        let odd = Arc::new(Odd::new(Habits::default()));
        let (store, path): (Arc<dyn ObjectStore>, _) = (odd.clone(), Path::from("out/plan.json"));
        assert!(!exists(&store, &path).await.unwrap());
        create(&store, &path, "a plan").await.unwrap();
        assert!(exists(&store, &path).await.unwrap());
        assert_eq!(odd.largest_get_bytes(), 0);
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_refused() {
        let store: Arc<dyn ObjectStore> = Arc::new(Odd::new(Habits {
            overwrites: true,
            ..Habits::default()
        }));
        let error = probe_create_only(&store, &Path::from("out"))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::NoPutIfAbsent { .. }), "{error}");
    }
}
