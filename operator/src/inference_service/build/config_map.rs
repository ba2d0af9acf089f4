//! The service's manifests, as its pods read them.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use millrace_crds::{API_VERSION, InferenceService};
use serde_json::json;

use super::{metadata, object};
use crate::names::child;

/// Where models lie in a pod.
pub const MODELS: &str = "/models";

/// Key of the manifest as it was written, for whoever fetches models.
pub const SERVICE_KEY: &str = "service.yaml";

/// Key of the manifest whose sources are the fetched folders, for the server.
pub const SERVER_KEY: &str = "server.yaml";

/// The ConfigMap with both.
pub fn config_map(service: &InferenceService) -> ConfigMap {
    let mut fetched = service.spec.clone();
    for model in &mut fetched.models {
        model.source.uri = format!("file://{MODELS}/{}", model.folder());
    }
    let manifest = |spec| {
        json!({
            "apiVersion": API_VERSION,
            "kind": "InferenceService",
            "metadata": {"name": service.name_any(), "namespace": service.namespace()},
            "spec": spec,
        })
        .to_string()
    };
    object(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(service, &child(&service.name_any(), "service")),
        "data": {SERVICE_KEY: manifest(&service.spec), SERVER_KEY: manifest(&fetched)},
    }))
}
