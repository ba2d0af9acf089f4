//! `spec.output`: where results go.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretKeyRef;

/// Where results, errors and the manifest are written.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.uri.matches('^[A-Za-z0-9+.-]+://[^/]*[@:]')")
        .message("a URI cannot carry credentials, nor a port; give them through the environment of the worker"),
    validation = Rule::new("!self.uri.matches('^s3://(.*/)?[.][.](/.*)?$')")
        .message("a URI cannot climb with `..`; name the place that it leads to"),
)]
pub struct Output {
    /// Folder to write to: `s3://bucket/path`, `file:///path`, or, for a local run, a path relative
    /// to the manifest. The store must honour put-if-absent.
    #[schemars(
        length(min = 1, max = 1024),
        // As for inputs: credentials are for the rule to refuse.
        regex(
            pattern = r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]*(/.*)?|file:///.+|[^:]+|[A-Za-z0-9+.-]+://[^/]*[@:].*)$"
        )
    )]
    pub uri: String,

    /// Compression of the parts.
    #[serde(default)]
    pub compression: OutputCompression,

    /// Input fields to carry into each result line's `input` object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub join: Vec<String>,

    /// Whether finish also writes all results into one file, `results.jsonl[.zst]`, in input order.
    #[serde(default)]
    pub merge: bool,

    /// Table that finish also loads all results and row errors into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,
}

/// A table of a Postgres database, with one row for each row of the input: made where it is missing,
/// checked where it is there. Loading again changes nothing.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Postgres {
    /// The connection URL, such as `postgres://user:password@host:5432/database`, in a Secret of the
    /// same namespace, under `url` unless `key` names another. A local run takes it from the
    /// environment variable `MILLRACE_POSTGRES_URL`. A `ca.crt` in the same Secret is trusted beside
    /// the public authorities.
    pub secret_ref: SecretKeyRef,

    /// Name of the table.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$")
    )]
    pub table: String,

    /// Schema of the table, which must be there. By default the first one of the user's search path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_$]*$")
    )]
    pub schema: Option<String>,
}

/// Compression of the parts.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputCompression {
    /// Plain JSON lines.
    #[default]
    None,
    /// Zstandard.
    Zstd,
}
