//! Why a store could not do what was asked of it.

use std::path::PathBuf;

/// Why a store could not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URI has no meaning.
    #[error("{uri} cannot be opened: {reason}")]
    InvalidUri {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The path of a `file://` URI could not be resolved.
    #[error("the path of {uri} cannot be resolved")]
    Unresolved {
        /// The URI.
        uri: String,
        /// Why.
        source: std::io::Error,
    },
    /// A `file://` URI leads out of the allowed folders.
    #[error("{uri} leads to {resolved}, which is outside the folders that may be used", resolved = .resolved.display())]
    OutsideRoots {
        /// The URI.
        uri: String,
        /// Where it leads once `..` and symlinks are resolved.
        resolved: PathBuf,
    },
    /// The store overwrites where it was asked to create.
    #[error(
        "the store of {path} ignores put-if-absent (If-None-Match: *), so two workers could both \
         commit a shard; use a store that honours it"
    )]
    NoPutIfAbsent {
        /// Path of the probe.
        path: String,
    },
    /// The client of a bucket could not be made from the settings.
    #[error("the S3 client for bucket {bucket} cannot be made; check the AWS_* settings")]
    Client {
        /// The bucket.
        bucket: String,
        /// Why.
        source: object_store::Error,
    },
    /// The store refused the credentials.
    #[error("the store denies access to {path}; check the credentials and what they allow")]
    Denied {
        /// Path of the object.
        path: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The object was replaced while it was read.
    #[error("{path} changed while it was read")]
    Changed {
        /// Path of the object.
        path: String,
    },
    /// The store failed.
    #[error("the store failed at {path}")]
    Store {
        /// Path of the object.
        path: String,
        /// How.
        source: object_store::Error,
    },
}

impl StoreError {
    /// What a failed request at `path` means.
    pub(crate) fn at(path: impl ToString, source: object_store::Error) -> Self {
        use object_store::Error;
        let path = path.to_string();
        match source {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Self::Denied { path, source }
            }
            source => Self::Store { path, source },
        }
    }

    /// Whether trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        use object_store::Error;
        match self {
            Self::InvalidUri { .. }
            | Self::Unresolved { .. }
            | Self::OutsideRoots { .. }
            | Self::NoPutIfAbsent { .. }
            | Self::Client { .. }
            | Self::Denied { .. }
            | Self::Changed { .. } => true,
            Self::Store { source, .. } => {
                !matches!(source, Error::Generic { .. } | Error::JoinError { .. })
            }
        }
    }
}
