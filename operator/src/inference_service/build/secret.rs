//! The Secrets of a service's pods: the one from which they, and those of its jobs, learn where the
//! leases and the kept answers are, and those that they mount.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use millrace_crds::{InferenceService, SecretRef};
use serde_json::json;

use super::{metadata, object, remote};
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

/// The Secrets that pods mount: those for the jobs, those for sources of models, and the one with an
/// API's key.
pub fn mounted(service: &InferenceService) -> BTreeSet<SecretRef> {
    let of_models = service.spec.models.iter();
    let of_models = of_models.filter_map(|model| model.source.credentials.as_ref());
    let listed = service.spec.secrets.iter();
    listed
        .chain(of_models)
        .cloned()
        .chain(remote::secret(service))
        .collect()
}
