//! The Secret from which the pods of a service, and of its jobs, learn where the leases are, and
//! where answers are kept.

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use millrace_crds::InferenceService;
use serde_json::json;

use super::{metadata, object};
use crate::names;
use crate::pods::{CACHE_URL_KEY, REDIS_URL_KEY};

/// A Secret, because a URL may hold a password.
pub fn leases_secret(service: &InferenceService, url: &str, cache_url: Option<&str>) -> Secret {
    let mut urls = json!({REDIS_URL_KEY: url});
    if let Some(cache_url) = cache_url {
        urls[CACHE_URL_KEY] = json!(cache_url);
    }
    object(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(service, &names::leases_secret(&service.name_any())),
        "stringData": urls,
    }))
}
