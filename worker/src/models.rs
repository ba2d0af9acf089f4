//! Brings the models of a service from an object store into a folder, whole and verified.

use std::fs::File;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use millrace_crds::inference_service::ModelSpec;
use millrace_model_files::source::{self, SourceError};
use tokio::io::AsyncWriteExt;

use crate::store::{StoreError, StoredObject, Stores};

/// Most files of one model.
const FILES_MAX: usize = 1_000;

/// Why a model is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Its source is of no kind that can be fetched.
    #[error("spec.models[{index}].source.uri: only s3://bucket/path can be fetched")]
    Scheme {
        /// Index of the model.
        index: usize,
    },
    /// Nothing is there.
    #[error("spec.models[{index}].source.uri: no object lies below it")]
    Empty {
        /// Index of the model.
        index: usize,
    },
    /// There is too much.
    #[error("spec.models[{index}].source.uri: more than {FILES_MAX} objects lie below it")]
    TooManyFiles {
        /// Index of the model.
        index: usize,
    },
    /// The store failed.
    #[error("a model could not be fetched")]
    Store(#[from] StoreError),
    /// The files could not be written.
    #[error("{} could not be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The files are not the model that was asked for.
    #[error("spec.models[{index}]: the fetched files cannot be used")]
    Files {
        /// Index of the model.
        index: usize,
        /// Why.
        source: SourceError,
    },
}

/// Fetches a model, which stands at `index` in its service, into a folder of its own below `folder`,
/// and returns that. Other processes may fetch into the same. What is there and verifies is left
/// alone, and what is half-fetched is begun anew.
pub async fn fetch(
    stores: &Stores,
    index: usize,
    model: &ModelSpec,
    folder: &Path,
) -> Result<PathBuf, FetchError> {
    let uri = &model.source.uri;
    if !uri.starts_with("s3://") {
        return Err(FetchError::Scheme { index });
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| FetchError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let name = model.folder();
    let place = folder.join(&name);
    let _alone = lock(folder.join(format!(".{name}.lock"))).await?;
    if verify(index, model, &place).is_ok() {
        tracing::info!(model = model.name, "the model is there");
        return Ok(place);
    }
    let making = folder.join(format!(".{name}.fetching"));
    remove(&making)?;
    download(stores, index, uri, &making).await?;
    verify(index, model, &making)?;
    remove(&place)?;
    std::fs::rename(&making, &place).map_err(failed(&place))?;
    tracing::info!(model = model.name, "the model is fetched");
    Ok(place)
}

/// Waits until no other process fetches the same; it is over when the file is closed.
async fn lock(path: PathBuf) -> Result<File, FetchError> {
    let locking = tokio::task::spawn_blocking(move || {
        let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| FetchError::Write { path, source })
    });
    locking.await.expect("waiting for a lock does not panic")
}

fn verify(index: usize, model: &ModelSpec, folder: &Path) -> Result<(), FetchError> {
    let digest = model.source.digest.as_deref();
    source::open(folder, model.task, digest)
        .map(drop)
        .map_err(|source| FetchError::Files { index, source })
}

fn remove(folder: &Path) -> Result<(), FetchError> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(FetchError::Write {
            path: folder.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

async fn download(
    stores: &Stores,
    index: usize,
    uri: &str,
    folder: &Path,
) -> Result<(), FetchError> {
    let from = stores.open(uri.trim_end_matches('/'))?;
    let failed = |source| StoreError::at(&from.path, source);
    let mut listed = from.store.list(Some(&from.path));
    let mut files = 0;
    while let Some(object) = listed.try_next().await.map_err(failed)? {
        files += 1;
        if files > FILES_MAX {
            return Err(FetchError::TooManyFiles { index });
        }
        // Only the parts below the folder: each is one plain name, so none can lead out of it.
        let below = object.location.prefix_match(&from.path);
        let below: PathBuf = below
            .into_iter()
            .flatten()
            .map(|part| part.as_ref().to_owned())
            .collect();
        let path = folder.join(below);
        let found = StoredObject::open(&from.store, &object.location).await;
        let found = found.map_err(failed)?;
        let mut bytes = std::pin::pin!(found.stream());
        let write = |source| FetchError::Write {
            path: path.clone(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(write)?;
        }
        let mut file = tokio::fs::File::create(&path).await.map_err(write)?;
        while let Some(bytes) = bytes.try_next().await? {
            file.write_all(&bytes).await.map_err(write)?;
        }
        file.sync_all().await.map_err(write)?;
    }
    match files {
        0 => Err(FetchError::Empty { index }),
        _ => Ok(()),
    }
}
