//! How the pods of a service are reached, and how many of them may be taken away at a time.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use millrace_crds::InferenceService;
use serde_json::json;

use crate::names::inference;

use super::{WORKER_PORT, metadata, object, selector, serving_port};

/// The Service for online requests.
pub fn service(service: &InferenceService) -> Service {
    object(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(service, &inference(&service.name_any())),
        "spec": {
            "selector": selector(service),
            "ports": [{"name": "http", "port": 80, "targetPort": serving_port(service)}],
        },
    }))
}

/// One pod at a time: the others go on with their shards and requests.
pub fn disruption_budget(service: &InferenceService) -> PodDisruptionBudget {
    object(json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(service, &inference(&service.name_any())),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(service)}},
    }))
}

/// Requests may come from the namespace; nothing else may. What the pods reach out to (stores, the
/// leases, names) is a matter of the cluster's own policies.
pub fn network_policy(service: &InferenceService) -> NetworkPolicy {
    object(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(service, &inference(&service.name_any())),
        "spec": {
            "podSelector": {"matchLabels": selector(service)},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{"podSelector": {}}],
                "ports": [{"port": serving_port(service)}, {"port": WORKER_PORT}],
            }],
        },
    }))
}
