//! `spec.notify`: who is told when a job is over.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::SecretKeyRef;

/// A receiver of events. It gets one when the job is over, however that came about, as a CloudEvent
/// in JSON; a receiver that cannot be reached fails no job.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    // A rule and no pattern: an API server repeats a value that has not the form.
    validation = Rule::new("self.url.matches('^https?://[^/?#@]+([/?][^#@]*)?$')")
        .message("url must be http(s)://host[:port][/path][?query], without credentials or fragment"),
)]
pub struct Notify {
    /// Where events are sent by POST. Who reads the job reads it; what must stay secret belongs into
    /// `secretRef`.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,

    /// What events are signed with, as the Standard Webhooks convention has it, in a Secret of the
    /// same namespace, under `secret` unless `key` names another. A local run takes it from the
    /// environment variable `MILLRACE_NOTIFY_SECRET`. Without one, events are not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
}
