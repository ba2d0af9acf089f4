//! Object stores by URI: the one place that opens them.
//!
//! A URI is taken literally: what follows `file://` or `s3://<bucket>/` is the path, byte for byte,
//! without percent-decoding. That is how `aws s3` and shells write them, and it makes the URIs that
//! a listing gives and the URIs that a manifest holds the same strings.

mod bucket;
mod error;
mod guard;
mod identity;
mod local;
mod object;
#[cfg(test)]
pub(crate) mod odd;
mod ranges;
mod uploads;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use futures::FutureExt;
use object_store::{
    ObjectStore, ObjectStoreExt, aws::AmazonS3ConfigKey, local::LocalFileSystem, memory::InMemory,
    path::Path,
};

use crate::job::Input;
use bucket::Bucket;
pub(crate) use guard::{Rules, guarded};

pub use error::{StoreError, StoreFailure};
pub use guard::{Forbidden, GuardError};
pub use object::{Created, create, exists, probe_create_only, read, read_range, replace};
pub(crate) use ranges::{RangeError, StoredObject};
pub use uploads::Uploads;

/// Where the rows are that a manifest itself holds; see [`Stores::with_inline_rows`].
pub const INLINE_ROWS: &str = "inline:///rows.jsonl";

/// What the stores are opened with.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// Settings of the S3 client, over its defaults. Credentials that are not given here come from
    /// the machine's identity (web identity, container or instance metadata).
    pub s3: Vec<(AmazonS3ConfigKey, String)>,
    /// Folders that `file://` URIs may lie in after `..` and symlinks are resolved; empty means
    /// anywhere.
    pub file_roots: Vec<PathBuf>,
    /// Whether S3 and whoever gives out its credentials may be at link-local addresses.
    pub link_local: LinkLocal,
}

/// Whether stores may be at addresses of the machine's own link, where services give out the
/// machine's identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LinkLocal {
    /// They may not: endpoints are named by others than those whom the machine belongs to.
    #[default]
    Blocked,
    /// They may, as for a person's own run on a machine of the cloud.
    Allowed,
}

/// The variable by which an administrator allows link-local addresses.
pub(crate) const LINK_LOCAL_VARIABLE: &str = "MILLRACE_ALLOW_LINK_LOCAL";

/// The variable by which loopback addresses are refused, or allowed.
pub(crate) const LOOPBACK_VARIABLE: &str = "MILLRACE_ALLOW_LOOPBACK";

/// Whether stores, APIs and receivers may be at addresses of this machine or pod itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loopback {
    /// They may, as on the machine of whoever names them.
    Allowed,
    /// They may not: what listens within a pod is for the pod's own programs.
    Blocked,
}

impl Loopback {
    /// What `MILLRACE_ALLOW_LOOPBACK` says, which the operator sets for all pods: allowed, unless it is
    /// `false`.
    pub(crate) fn from_env() -> Self {
        match std::env::var_os(LOOPBACK_VARIABLE) {
            Some(value) if value == "false" => Loopback::Blocked,
            _ => Loopback::Allowed,
        }
    }
}

impl LinkLocal {
    /// What `MILLRACE_ALLOW_LINK_LOCAL` says: blocked, unless it is `true`.
    pub fn from_env() -> Self {
        match std::env::var_os(LINK_LOCAL_VARIABLE) {
            Some(value) if value == "true" => LinkLocal::Allowed,
            _ => LinkLocal::Blocked,
        }
    }
}

/// Opens object stores by URI and keeps one client per bucket. Clones share their clients.
#[derive(Debug, Clone)]
pub struct Stores {
    shared: Arc<Shared>,
    /// Holds the rows of one job's manifest.
    inline: Option<Arc<dyn ObjectStore>>,
}

#[derive(Debug)]
struct Shared {
    options: StoreOptions,
    local: Arc<dyn ObjectStore>,
    buckets: Mutex<HashMap<String, Bucket>>,
}

/// A place in a store: an object, or a folder of them.
#[derive(Debug, Clone)]
pub struct Location {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// Path in the store. For `file://` it is absolute, with every symlink resolved.
    pub path: Path,
    /// The place as people write it: a path of this machine that begins with a slash, or a URI.
    pub name: String,
    /// Uploads that were begun in the store, where it keeps those that nobody ends.
    pub uploads: Option<Uploads>,
}

impl Location {
    /// Path of `relative`, such as `parts/a.jsonl`, below this location.
    pub fn below(&self, relative: &str) -> Path {
        relative
            .split('/')
            .fold(self.path.clone(), |path, part| path.join(part))
    }
}

/// A URI, split but not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreUri<'a> {
    /// `file:///path`, with the path.
    File(&'a str),
    /// `s3://bucket/key`.
    S3 { bucket: &'a str, key: &'a str },
    /// [`INLINE_ROWS`].
    Inline,
}

impl<'a> StoreUri<'a> {
    /// Splits a URI and checks its shape.
    pub(crate) fn parse(uri: &'a str) -> Result<Self, StoreError> {
        let invalid = |reason: &str| StoreError::InvalidUri {
            uri: uri.into(),
            reason: reason.into(),
        };
        if uri == INLINE_ROWS {
            return Ok(Self::Inline);
        }
        if let Some(path) = uri.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(invalid("a file URI has three slashes and an absolute path"));
            }
            return Ok(Self::File(path));
        }
        let Some(rest) = uri.strip_prefix("s3://") else {
            return Err(invalid("only file:///… and s3://bucket/… can be opened"));
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) {
            return Err(invalid(
                "the bucket's name is empty or has characters no bucket has",
            ));
        }
        Ok(Self::S3 { bucket, key })
    }
}

impl Stores {
    /// Stores with the environment's settings: the `AWS_*` variables that the AWS tools know,
    /// `AWS_ENDPOINT_URL` and `AWS_ALLOW_HTTP` among them, and `MILLRACE_FILE_ROOTS`, a
    /// colon-separated list of the folders that `file://` URIs may lie in.
    pub fn from_env(link_local: LinkLocal) -> Stores {
        Self::from_env_and(std::iter::empty(), link_local)
    }

    /// Stores with the environment's settings and, over them, those of a mounted Secret: one file
    /// per variable, named like it. Read anew with each call, since the kubelet refreshes the files.
    pub fn from_env_and_folder(
        folder: &std::path::Path,
        link_local: LinkLocal,
    ) -> std::io::Result<Stores> {
        let mut variables = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The kubelet keeps its own links beside the keys.
            if name.starts_with("AWS_") {
                let value = std::fs::read_to_string(entry.path())?;
                variables.push((name, value.trim_end().to_owned()));
            }
        }
        Ok(Self::from_env_and(variables.into_iter(), link_local))
    }

    fn from_env_and(
        variables: impl Iterator<Item = (String, String)>,
        link_local: LinkLocal,
    ) -> Stores {
        let aws = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
        let s3 = aws
            .chain(variables)
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)))
            .collect();
        let roots = std::env::var_os("MILLRACE_FILE_ROOTS").unwrap_or_default();
        let file_roots = std::env::split_paths(&roots)
            .filter(|root| !root.as_os_str().is_empty())
            .collect();
        Stores::new(StoreOptions {
            s3,
            file_roots,
            link_local,
        })
    }

    /// Stores with explicit settings.
    pub fn new(options: StoreOptions) -> Stores {
        // Without fsync a commit record could outlive a power loss that its part did not.
        let local = Arc::new(LocalFileSystem::new().with_fsync(true));
        Stores {
            shared: Arc::new(Shared {
                options,
                local,
                buckets: Mutex::default(),
            }),
            inline: None,
        }
    }

    /// The same stores, with the rows that a job's manifest holds at [`INLINE_ROWS`].
    pub fn with_inline_rows(&self, input: &Input) -> Self {
        let Some(rows) = &input.inline else {
            return self.clone();
        };
        let store = InMemory::new();
        store
            .put(&inline_path(), rows.clone().into())
            .now_or_never()
            .expect("memory answers at once")
            .expect("memory takes everything");
        Self {
            shared: self.shared.clone(),
            inline: Some(Arc::new(store)),
        }
    }

    /// Opens the place that a URI names. Nothing needs to exist there, and nothing is contacted.
    pub fn open(&self, uri: &str) -> Result<Location, StoreError> {
        let invalid = |reason: String| StoreError::InvalidUri {
            uri: uri.into(),
            reason,
        };
        match StoreUri::parse(uri)? {
            StoreUri::File(path) => {
                let resolved = self.resolve(uri, path)?;
                let text = resolved
                    .to_str()
                    .ok_or_else(|| invalid("not UTF-8".into()))?;
                let path = Path::parse(text).map_err(|error| invalid(error.to_string()))?;
                Ok(Location {
                    store: Arc::clone(&self.shared.local),
                    path,
                    name: text.to_owned(),
                    uploads: None,
                })
            }
            StoreUri::Inline => Ok(Location {
                store: self
                    .inline
                    .clone()
                    .ok_or_else(|| invalid("the manifest holds no rows".into()))?,
                path: inline_path(),
                name: uri.to_owned(),
                uploads: None,
            }),
            StoreUri::S3 { bucket, key } => {
                let path = Path::parse(key).map_err(|error| invalid(error.to_string()))?;
                let Bucket { store, uploads } = self.bucket(bucket)?;
                Ok(Location {
                    store,
                    path,
                    name: uri.to_owned(),
                    uploads,
                })
            }
        }
    }

    /// Resolves `..` and symlinks and refuses what then lies outside the allowed folders.
    fn resolve(&self, uri: &str, path: &str) -> Result<PathBuf, StoreError> {
        let resolved = local::resolve(std::path::Path::new(path)).map_err(|source| {
            StoreError::Unresolved {
                uri: uri.into(),
                source,
            }
        })?;
        let roots = &self.shared.options.file_roots;
        let allowed = roots.is_empty()
            || roots
                .iter()
                .any(|root| local::resolve(root).is_ok_and(|root| resolved.starts_with(root)));
        if !allowed {
            return Err(StoreError::OutsideRoots {
                uri: uri.into(),
                resolved,
            });
        }
        Ok(resolved)
    }

    fn bucket(&self, bucket: &str) -> Result<Bucket, StoreError> {
        let mut buckets = self
            .shared
            .buckets
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        if let Some(opened) = buckets.get(bucket) {
            return Ok(opened.clone());
        }
        let opened = Bucket::open(bucket, &self.shared.options)?;
        buckets.insert(bucket.into(), opened.clone());
        Ok(opened)
    }
}

fn inline_path() -> Path {
    Path::from("rows.jsonl")
}

#[cfg(test)]
pub(crate) mod testing {
    use object_store::aws::AmazonS3ConfigKey;

    use super::{LinkLocal, StoreOptions, Stores};

    /// Stores whose buckets lie at this endpoint.
    pub fn stores_at(endpoint: &str, link_local: LinkLocal) -> Stores {
        let settings = [
            (AmazonS3ConfigKey::Endpoint, endpoint.to_owned()),
            (AmazonS3ConfigKey::AccessKeyId, "key".to_owned()),
            (AmazonS3ConfigKey::SecretAccessKey, "secret".to_owned()),
            ("aws_allow_http".parse().unwrap(), "true".to_owned()),
        ];
        Stores::new(StoreOptions {
            s3: settings.to_vec(),
            file_roots: vec![],
            link_local,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn refused(uri: &str) -> String {
        Stores::new(StoreOptions::default())
            .open(uri)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn only_file_and_s3_can_be_opened() {
        for uri in [
            "http://169.254.169.254/latest",
            "gs://bucket/a",
            "/data/a.jsonl",
            "file://a",
        ] {
            assert!(refused(uri).contains(uri), "{uri}");
        }
    }

    #[test]
    fn credentials_in_a_bucket_are_refused() {
        assert!(refused("s3://key:secret@bucket/a").contains("bucket"));
    }

    #[tokio::test]
    async fn an_endpoint_on_the_link_is_reached_only_where_it_is_allowed() {
        let told = |endpoint: &str, link_local| {
            let stores = testing::stores_at(endpoint, link_local);
            async move {
                let location = stores.open("s3://bucket/object").unwrap();
                let asked = read(&location.store, &location.path);
                // A refusal is tried a few times, as any answer that may change; whoever is allowed to
                // ask gets no answer here.
                let patience = match link_local {
                    LinkLocal::Blocked => Duration::from_secs(60),
                    LinkLocal::Allowed => Duration::from_secs(3),
                };
                match tokio::time::timeout(patience, asked).await {
                    Ok(answer) => millrace_telemetry::chain(&answer.unwrap_err()),
                    Err(_) => "no answer".to_owned(),
                }
            }
        };
        for endpoint in ["http://169.254.169.254", "http://2852039166"] {
            let message = told(endpoint, LinkLocal::Blocked).await;
            assert!(message.contains("MILLRACE_ALLOW_LINK_LOCAL"), "{message}");
            let message = told(endpoint, LinkLocal::Allowed).await;
            assert!(!message.contains("MILLRACE_ALLOW_LINK_LOCAL"), "{message}");
        }
    }

    #[test]
    fn an_endpoint_without_encryption_is_refused_before_anything_is_asked() {
        let open = |endpoint: &str, allow_http: Option<&str>| {
            let settings = [
                ("aws_endpoint_url", Some(endpoint)),
                ("aws_allow_http", allow_http),
            ];
            let settings = settings
                .into_iter()
                .filter_map(|(key, value)| Some((key.parse().unwrap(), value?.to_owned())));
            let stores = Stores::new(StoreOptions {
                s3: settings.collect(),
                ..StoreOptions::default()
            });
            stores
                .open("s3://bucket/out")
                .map_err(|error| error.to_string())
        };
        let said = "the endpoint http://minio:9000 is not https: set AWS_ALLOW_HTTP=true";
        for (endpoint, allow_http) in [
            ("http://minio:9000", None),
            ("http://minio:9000", Some("false")),
            ("http://user:hunter2@minio:9000", None),
        ] {
            assert_eq!(open(endpoint, allow_http).unwrap_err(), said, "{endpoint}");
        }
        assert!(open("http://minio:9000", Some("true")).is_ok());
        assert!(open("https://minio:9000", None).is_ok());
    }

    #[test]
    fn a_uri_is_taken_literally() {
        let folder = tempfile::tempdir().unwrap();
        let name = "50% off [a].jsonl";
        std::fs::write(folder.path().join(name), "x").unwrap();
        let uri = format!("file://{}/{name}", folder.path().display());
        let location = Stores::new(StoreOptions::default()).open(&uri).unwrap();
        assert_eq!(location.path.filename(), Some(name));
    }

    #[test]
    fn a_symlink_out_of_the_allowed_folders_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let stores = Stores::new(StoreOptions {
            s3: vec![],
            file_roots: vec![inside.clone()],
            link_local: LinkLocal::Blocked,
        });
        let open = |path: &str| stores.open(&format!("file://{}/{path}", inside.display()));
        assert!(open("a.jsonl").is_ok());
        assert!(matches!(
            open("link/a.jsonl"),
            Err(StoreError::OutsideRoots { .. })
        ));
        assert!(matches!(
            open("../out/a.jsonl"),
            Err(StoreError::OutsideRoots { .. })
        ));
    }
}
