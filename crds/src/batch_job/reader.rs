//! `spec.reader`: who may read the results over HTTP.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretKeyRef;

/// A pod of the job's namespace that serves the result lines over HTTP as long as the job's object is there,
/// under the Service `JOB-reader`. Means nothing for a local run.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Reader {
    /// The token that requests must bring as `Authorization: Bearer`, in a Secret of the same namespace,
    /// under `token` unless `key` names another.
    pub secret_ref: SecretKeyRef,
}
