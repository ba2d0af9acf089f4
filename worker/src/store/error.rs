//! Why a store could not do what was asked of it.

use std::error::Error;
use std::path::PathBuf;

use super::identity::NoCredentials;

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
    /// The endpoint has no encryption, and nobody said that it may.
    #[error("the endpoint {endpoint} is not https: set AWS_ALLOW_HTTP=true")]
    PlainHttp {
        /// The endpoint.
        endpoint: String,
    },
    /// The store refused the credentials.
    #[error("the store denies access to {path}; check the credentials and what they allow")]
    Denied {
        /// Path of the object.
        path: String,
        /// What the client of the store says.
        source: StoreFailure,
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
        /// Whether trying again cannot help.
        is_permanent: bool,
        /// How.
        source: StoreFailure,
    },
}

/// What the client of a store says of a failed request, without what a reply said beyond its status and S3's
/// word for the error. Whoever names the endpoint decides what it replies, and a job's status and Events show
/// why the job failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// Nothing of a reply is in it.
    #[error(transparent)]
    Whole(object_store::Error),
    /// The words before those that were taken from a reply.
    #[error("{0}")]
    Cut(String),
}

/// What the client of a store writes before the status and the body of a reply.
const STATUS_FOLLOWS: &str = "Server returned non-2xx status code: ";

/// What it writes before other parts of a reply.
const REPLY_FOLLOWS: [&str; 2] = [
    "Server returned error response: ",
    "DeleteObjects request failed for key ",
];

/// Most letters of S3's word for an error, such as `AccessDenied`.
const CODE_LETTERS_MAX: usize = 64;

impl StoreError {
    /// What a failed request at `path` means.
    pub(crate) fn at(path: impl ToString, error: object_store::Error) -> Self {
        use object_store::Error;
        let path = path.to_string();
        match &error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Self::Denied {
                path,
                source: error.into(),
            },
            other => Self::Store {
                path,
                is_permanent: !matches!(other, Error::Generic { .. } | Error::JoinError { .. }),
                source: error.into(),
            },
        }
    }

    /// Whether trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::InvalidUri { .. }
            | Self::Unresolved { .. }
            | Self::OutsideRoots { .. }
            | Self::NoPutIfAbsent { .. }
            | Self::Client { .. }
            | Self::PlainHttp { .. }
            | Self::Denied { .. }
            | Self::Changed { .. } => true,
            Self::Store { is_permanent, .. } => *is_permanent,
        }
    }
}

impl From<object_store::Error> for StoreFailure {
    fn from(error: object_store::Error) -> Self {
        if let Some(missing) = error
            .source()
            .and_then(|it| it.downcast_ref::<NoCredentials>())
        {
            return Self::Cut(missing.to_string());
        }
        // The client's errors that hold a body have no public type, but their words are fixed.
        let text = error.to_string();
        if let Some((words, reply)) = text.split_once(STATUS_FOLLOWS) {
            let (status, body) = reply.split_once(": ").unwrap_or((reply, ""));
            let code = code(body).map(|code| format!(" ({code})"));
            let code = code.unwrap_or_default();
            return Self::Cut(format!("{words}the store answered {status}{code}"));
        }
        let quoted = REPLY_FOLLOWS.iter().find_map(|mark| text.find(mark));
        match quoted.or_else(|| unparsed(&error, &text)) {
            Some(at) => Self::Cut(format!("{}an unexpected reply", &text[..at])),
            None => Self::Whole(error),
        }
    }
}

/// Where `text`, the words of `error`, begins to quote a reply that could not be parsed.
fn unparsed(error: &object_store::Error, text: &str) -> Option<usize> {
    let mut link: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = link {
        if error.is::<quick_xml::DeError>() || error.is::<serde_json::Error>() {
            // Words that are not repeated by the errors around them are cut off with all others.
            return Some(text.find(&error.to_string()).unwrap_or(0));
        }
        link = error.source();
    }
    None
}

/// S3's word for the error in the body of a reply.
fn code(body: &str) -> Option<&str> {
    let (_, code) = body.split_once("<Code>")?;
    let (code, _) = code.split_once("</Code>")?;
    let is_word = code.len() <= CODE_LETTERS_MAX && code.bytes().all(|it| it.is_ascii_alphabetic());
    is_word.then_some(code)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::StatusCode;
    use futures::TryStreamExt;

    use crate::store::testing::stores_at;
    use crate::store::{LinkLocal, Location, read};

    use super::*;

    /// What no status may show.
    const MARKER: &str = "marker of the endpoint";

    /// A bucket at a server that answers every request like this.
    async fn bucket(status: StatusCode, body: String) -> Location {
        let app = axum::Router::new().fallback(move || async move { (status, body) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let stores = stores_at(&format!("http://{address}"), LinkLocal::Blocked);
        stores.open("s3://bucket/out").unwrap()
    }

    /// Why an object at such a server cannot be read.
    async fn refusal(status: StatusCode, body: String) -> (String, StoreError) {
        let out = bucket(status, body).await;
        let path = out.below("a");
        let reading = read(&out.store, &path);
        let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
        let error = read.expect("an answer").unwrap_err();
        let said = format!("{}; {error:?}", millrace_telemetry::chain(&error));
        (said, error)
    }

    #[tokio::test]
    async fn of_a_reply_its_status_and_code_are_said_and_nothing_else() {
        let body = |code: &str| {
            format!("<Error><Code>{code}</Code><Message>{MARKER}</Message></Error>{MARKER}")
        };
        let (said, error) = refusal(StatusCode::FORBIDDEN, body("AccessDenied")).await;
        assert!(matches!(error, StoreError::Denied { .. }), "{said}");
        assert!(said.contains("403 Forbidden (AccessDenied)"), "{said}");
        assert!(
            !said.contains(MARKER) && !said.contains("<Error>"),
            "{said}"
        );
        for body in [body(MARKER), body(&"A".repeat(65)), MARKER.to_owned()] {
            let (said, error) = refusal(StatusCode::PRECONDITION_FAILED, body).await;
            assert!(matches!(error, StoreError::Store { .. }), "{said}");
            assert!(said.contains("412 Precondition Failed"), "{said}");
            assert!(!said.contains(MARKER) && !said.contains("AAAAA"), "{said}");
        }
    }

    #[tokio::test]
    async fn of_a_reply_that_cannot_be_parsed_nothing_is_said() {
        let body = format!("<ListBucketResult></{MARKER}>");
        let out = bucket(StatusCode::OK, body).await;
        let listed: Result<Vec<_>, _> = out.store.list(Some(&out.path)).try_collect().await;
        let error = listed.unwrap_err();
        assert!(error.to_string().contains(MARKER), "it is quoted: {error}");
        let error = StoreError::at("out", error);
        let said = format!("{}; {error:?}", millrace_telemetry::chain(&error));
        assert!(said.contains("an unexpected reply"), "{said}");
        assert!(!said.contains(MARKER), "{said}");
    }
}
