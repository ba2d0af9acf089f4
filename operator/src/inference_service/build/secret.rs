//! The Secret from which the pods of a service, and of its jobs, learn where the leases are.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use millrace_crds::InferenceService;
use serde_json::json;

use super::{metadata, object};
use crate::names;
use crate::pods::REDIS_URL_KEY;

/// A Secret, because the URL may hold a password.
pub fn leases_secret(service: &InferenceService, url: &str) -> Secret {
    object(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(service, &names::leases_secret(&service.name_any())),
        "stringData": {REDIS_URL_KEY: url},
    }))
}
