//! API keys: who may ask over TCP, and how often.
//!
//! Keys are held as hashes and compared in constant time; no error and no log names one.

use std::{
    collections::BTreeMap,
    io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use http::HeaderMap;
use millrace_edge::bearer;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::http::{error::ApiError, openai};

/// How often the folder is read again, for keys that were added or withdrawn.
const READ_EVERY: Duration = Duration::from_secs(10);

/// Most bytes of a key.
const KEY_BYTES_MAX: usize = 4_096;

/// What says how the server is, is open: probes and Prometheus have no keys.
const OPEN: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Why keys cannot be read. Names files, never what is in them.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file or the folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key is empty or far too long.
    #[error("{} holds no key: it must have 1 to {KEY_BYTES_MAX} bytes", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Nobody could ask.
    #[error("{} holds no keys: put one into a file for each client", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// The keys that count, and how often each may ask.
pub struct ApiKeys {
    folder: PathBuf,
    /// SHA-256 of each key, by its name.
    digests: RwLock<Arc<Digests>>,
    /// By name, so that a new key of an old name starts no new minute.
    limiter: Option<DefaultKeyedRateLimiter<String>>,
}

type Digests = BTreeMap<String, [u8; 32]>;

impl ApiKeys {
    /// The keys in `folder`: each file's name is the name of a key, its content the key, as a Secret
    /// is mounted. Blocks.
    pub fn open(folder: &Path, requests_per_minute: Option<NonZeroU32>) -> Result<Self, KeysError> {
        let limiter = requests_per_minute.map(|requests| {
            // Ten seconds' worth at once; a whole minute's would be two in the first minute.
            let burst = NonZeroU32::new(requests.get().div_ceil(6)).unwrap_or(NonZeroU32::MIN);
            RateLimiter::keyed(Quota::per_minute(requests).allow_burst(burst))
        });
        Ok(Self {
            folder: folder.to_owned(),
            digests: RwLock::new(Arc::new(read(folder)?)),
            limiter,
        })
    }

    /// Reads the folder again, again and again. Keys that cannot be read change nothing.
    pub async fn keep_reading(self: Arc<Self>) {
        loop {
            tokio::time::sleep(READ_EVERY).await;
            let folder = self.folder.clone();
            match tokio::task::spawn_blocking(move || read(&folder)).await {
                Ok(Ok(digests)) => self.replace(digests),
                Ok(Err(error)) => tracing::warn!(%error, "the API keys stay what they were"),
                Err(_) => tracing::error!("reading the API keys panicked"),
            }
        }
    }

    fn replace(&self, digests: Digests) {
        if let Some(limiter) = &self.limiter {
            // Forgets names that have not asked for a while.
            limiter.retain_recent();
        }
        *self.digests.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(digests);
    }

    /// Lets a request in that brings a key and has not asked too often.
    fn admit(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let digests = self.digests.read();
        let digests = digests.unwrap_or_else(PoisonError::into_inner).clone();
        let key = presented(headers).ok_or(ApiError::Unauthorized)?;
        let name = owner(&digests, key).ok_or(ApiError::Unauthorized)?;
        let Some(limiter) = &self.limiter else {
            return Ok(());
        };
        limiter.check_key(name).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            ApiError::RateLimited {
                retry_after_seconds: wait.as_secs() + 1,
            }
        })
    }
}

/// Refuses whoever brings no key.
pub async fn require(State(keys): State<Arc<ApiKeys>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if OPEN.contains(&path) {
        return next.run(request).await;
    }
    match keys.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) if path == openai::EMBEDDINGS => error.into_openai(),
        Err(error) => error.into_response(),
    }
}

/// The key of `Authorization: Bearer KEY` or `X-API-Key: KEY`.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    bearer(headers).or_else(|| Some(headers.get("x-api-key")?.as_bytes()))
}

/// The name of a key. Looks at all of them, each in constant time.
fn owner<'a>(digests: &'a Digests, key: &[u8]) -> Option<&'a String> {
    let presented: [u8; 32] = Sha256::digest(key).into();
    let mut owner = None;
    for (name, digest) in digests {
        if bool::from(digest.ct_eq(&presented)) {
            owner = Some(name);
        }
    }
    owner
}

fn read(folder: &Path) -> Result<Digests, KeysError> {
    let unreadable = |path: &Path, source| KeysError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut digests = Digests::new();
    for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        let entry = entry.map_err(|error| unreadable(folder, error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The kubelet keeps its own books in names with dots.
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        let key = std::fs::read(&path).map_err(|error| unreadable(&path, error))?;
        let key = key.trim_ascii();
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(KeysError::NoKey { path });
        }
        digests.insert(name, Sha256::digest(key).into());
    }
    if digests.is_empty() {
        let path = folder.to_owned();
        return Err(KeysError::Empty { path });
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(keys: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, key) in keys {
            std::fs::write(folder.path().join(name), key).unwrap();
        }
        folder
    }

    #[test]
    fn a_key_is_found_by_its_whole_self_without_the_line_end() {
        let folder = folder(&[("acme", "s3cret\n"), ("zoo", "other")]);
        let digests = read(folder.path()).unwrap();
        assert_eq!(owner(&digests, b"s3cret").unwrap(), "acme");
        assert_eq!(owner(&digests, b"other").unwrap(), "zoo");
        for wrong in ["s3cre", "s3cret\n", "", "acme"] {
            assert_eq!(owner(&digests, wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_folder_without_keys_and_an_empty_key_are_refused_by_name() {
        let none = folder(&[("..data", "s3cret")]);
        let refused = read(none.path());
        assert!(matches!(refused, Err(KeysError::Empty { .. })));
        let empty = folder(&[("acme", "s3cret"), ("zoo", " \n")]);
        let error = read(empty.path()).unwrap_err().to_string();
        assert!(
            error.contains("zoo") && !error.contains("s3cret"),
            "{error}"
        );
    }

    #[test]
    fn keys_come_as_bearer_or_in_a_header_of_their_own() {
        let with = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            presented(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(with("authorization", "Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(with("authorization", "bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(with("x-api-key", "abc"), Some(b"abc".to_vec()));
        assert_eq!(with("authorization", "Basic abc"), None);
        assert_eq!(with("cookie", "abc"), None);
    }
}
