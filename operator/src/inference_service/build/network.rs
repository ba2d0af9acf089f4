//! How the pods of a service are reached, and how many of them may be taken away at a time.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use millrace_crds::InferenceService;
use serde_json::json;

use crate::config::Options;
use crate::names::inference;
use crate::pod_network::{egress_rules, ingress_peers};

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

/// Requests may come from the namespace and from whom an administrator lets in, and the pods reach what
/// all pods of this operator do.
pub fn network_policy(service: &InferenceService, options: &Options) -> NetworkPolicy {
    object(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(service, &inference(&service.name_any())),
        "spec": {
            "podSelector": {"matchLabels": selector(service)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": ingress_peers(options),
                "ports": [{"port": serving_port(service)}, {"port": WORKER_PORT}],
            }],
            "egress": egress_rules(options),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> InferenceService {
        let service = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "tenant", "uid": "u"},
            "spec": {"models": []},
        }));
        service.unwrap()
    }

    #[test]
    fn one_pod_of_a_service_is_taken_away_at_a_time() {
        let budget = json!(disruption_budget(&service()));
        assert_eq!(budget["metadata"]["name"], "service-inference");
        let of_service = json!({"matchLabels": {"millrace.dev/inference-service": "service"}});
        let expected = json!({"maxUnavailable": 1, "selector": of_service});
        assert_eq!(budget["spec"], expected);
    }

    #[test]
    fn requests_come_from_the_namespace_and_from_whom_an_administrator_lets_in() {
        let monitoring = json!({"namespaceSelector": {"matchLabels": {"team": "monitoring"}}});
        let options = Options::of_tests(&[
            "--redis-url=redis://redis",
            "--pod-ingress-from",
            &json!([monitoring]).to_string(),
        ]);
        let spec = &json!(network_policy(&service(), &options))["spec"];
        let ingress = spec["ingress"].as_array().unwrap();
        assert_eq!(ingress.len(), 1);
        assert_eq!(ingress[0]["from"], json!([{"podSelector": {}}, monitoring]));
        assert_eq!(ingress[0]["ports"], json!([{"port": 8080}, {"port": 8081}]));
        assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(spec["egress"], egress_rules(&options));
    }
}
