//! `spec.incremental`: an earlier output, so that only what changed is asked.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// An earlier output whose answers are carried over. A row is unchanged if its text, or the fields
/// that prompts are made of, are the same; where it stands and what its id is does not matter. Another
/// model, prompt or parameter makes every row a changed one.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("!self.from.matches('^[A-Za-z0-9+.-]+://[^/]*[@:]')")
        .message("a URI cannot carry credentials, nor a port; give them through the environment of the worker"),
    validation = Rule::new("!self.from.matches('^s3://(.*/)?[.][.](/.*)?$')")
        .message("a URI cannot climb with `..`; name the place that it leads to"),
)]
pub struct Incremental {
    /// Folder of a finished job's output: `s3://bucket/path`, `file:///path`, or, for a local run, a
    /// path relative to the manifest. The job's credentials must reach it.
    #[schemars(
        length(min = 1, max = 1024),
        // Credentials are for the rule to refuse, which never repeats them.
        regex(
            pattern = r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]*(/.*)?|file:///.+|[^:]+|[A-Za-z0-9+.-]+://[^/]*[@:].*)$"
        )
    )]
    pub from: String,
}
