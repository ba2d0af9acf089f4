//! What differs in the pods of a service with `remote`: they hold a worker alone. Pure.

use millrace_crds::{InferenceService, SecretRef};
use serde_json::{Value, json};

use super::{WORKER_PORT, computes};

/// The Secret with the key of an API elsewhere.
pub fn secret(service: &InferenceService) -> Option<SecretRef> {
    let key = service.spec.remote.as_ref()?.api_key_secret_ref.as_ref()?;
    let name = key.name.clone();
    Some(SecretRef { name })
}

/// The worker as the pod's one container: it ends when it is told to, and waits for no server.
pub fn alone(mut worker: Value, computes: &computes::Given) -> Value {
    let fields = worker.as_object_mut().expect("a container has fields");
    fields.remove("restartPolicy");
    let ready = json!({"httpGet": {"path": "/ready", "port": WORKER_PORT}, "periodSeconds": 2});
    fields.insert("readinessProbe".to_owned(), ready);
    let resources = &computes.resources;
    if resources.as_object().is_some_and(|given| !given.is_empty()) {
        fields.insert("resources".to_owned(), resources.clone());
    }
    worker
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::pods;

    #[test]
    fn where_an_api_elsewhere_answers_the_worker_is_alone_and_has_the_key() {
        let remote = json!({
            "baseUrl": "https://api.example.com/v1", "api": "Chat", "model": "m",
            "apiKeySecretRef": {"name": "openai"},
        });
        let service = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "tenant", "uid": "u"},
            "spec": {
                "secrets": [{"name": "store"}], "remote": remote, "cache": {"enabled": true},
            },
        });
        let options = Options::of_tests(&[
            "--redis-url=redis://redis",
            "--cache-redis-url=redis://cache",
        ]);
        let service = serde_json::from_value(service).unwrap();
        let made = json!(super::super::deployment(&service, Some(2), &options));
        let pod = &made["spec"]["template"]["spec"];
        assert_eq!(pod["initContainers"], json!([]));
        let containers = pod["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1);
        let worker = &containers[0];
        assert_eq!(worker["name"], "worker");
        assert_eq!(worker.get("restartPolicy"), None, "only a sidecar has one");
        assert_eq!(worker["readinessProbe"]["httpGet"]["path"], "/ready");
        let remote = json!({"name": "MILLRACE_REMOTE", "value": "true"});
        let variables = worker["env"].as_array().unwrap();
        assert!(variables.contains(&remote), "{variables:#?}");
        let cache = json!({
            "name": "MILLRACE_CACHE_REDIS_URL",
            "valueFrom": {"secretKeyRef": {"name": "service-leases", "key": pods::CACHE_URL_KEY}},
        });
        assert!(variables.contains(&cache), "{variables:#?}");
        let mounts = worker["volumeMounts"].as_array().unwrap().iter();
        let places: Vec<_> = mounts.map(|mount| &mount["mountPath"]).collect();
        let folder = |name| format!("{}/{name}", pods::SECRETS);
        assert_eq!(places, [&json!(folder("openai")), &json!(folder("store"))]);
    }
}
