//! What the server's container gets for requests: the keys of those who may ask, and the Redis in
//! which answers are kept. Pure.

use kube::ResourceExt;
use millrace_crds::InferenceService;
use serde_json::{Value, json};

use crate::config::Options;
use crate::names::leases_secret;
use crate::pods::CACHE_URL_KEY;

/// Where the keys are mounted.
const API_KEYS: &str = "/var/run/millrace/api-keys";

/// What the server's container and its pod get.
pub struct Given {
    /// Variables of the container.
    pub variables: Vec<Value>,
    /// Mounts of the container.
    pub mounts: Vec<Value>,
    /// Volumes of the pod.
    pub volumes: Vec<Value>,
}

impl Given {
    /// What the service says, as far as this project's own server knows it.
    pub fn of(service: &InferenceService, options: &Options) -> Self {
        let mut given = Self {
            variables: vec![json!({"name": "MILLRACE_NAMESPACE", "value": service.namespace()})],
            mounts: Vec::new(),
            volumes: Vec::new(),
        };
        given.variables.extend(cache_variable(service, options));
        if let Some(auth) = &service.spec.auth {
            let variable = json!({"name": "MILLRACE_API_KEYS", "value": API_KEYS});
            given.variables.push(variable);
            let name = "api-keys";
            let mount = json!({"name": name, "mountPath": API_KEYS, "readOnly": true});
            given.mounts.push(mount);
            let secret = json!({"secretName": auth.secret_ref.name});
            given.volumes.push(json!({"name": name, "secret": secret}));
        }
        given
    }
}

/// The Redis in which answers are kept, for whoever keeps those of the service, if they are kept there.
pub fn cache_variable(service: &InferenceService, options: &Options) -> Option<Value> {
    let is_kept = service.spec.cache.enabled && options.cache_redis_url.is_some();
    let secret = leases_secret(&service.name_any());
    is_kept.then(|| {
        json!({
            "name": "MILLRACE_CACHE_REDIS_URL",
            "valueFrom": {"secretKeyRef": {"name": secret, "key": CACHE_URL_KEY}},
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(spec: Value) -> Given {
        let url = "--cache-redis-url=redis://:secret@cache";
        let options = Options::of_tests(&["--redis-url=redis://redis", url]);
        let service = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "tenant"}, "spec": spec,
        });
        let service = serde_json::from_value(service).unwrap();
        Given::of(&service, &options)
    }

    fn names(given: &Given) -> Vec<&str> {
        let variables = given.variables.iter();
        variables.map(|it| it["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_server_gets_keys_and_the_cache_where_its_service_wants_them() {
        let bare = given(json!({}));
        assert_eq!(names(&bare), ["MILLRACE_NAMESPACE"]);
        assert!(bare.volumes.is_empty());
        let full = given(json!({
            "cache": {"enabled": true}, "auth": {"secretRef": {"name": "clients"}},
        }));
        let expected = [
            "MILLRACE_NAMESPACE",
            "MILLRACE_CACHE_REDIS_URL",
            "MILLRACE_API_KEYS",
        ];
        assert_eq!(names(&full), expected);
        assert!(!json!(full.variables).to_string().contains("secret@"));
        let volume = json!({"name": "api-keys", "secret": {"secretName": "clients"}});
        assert_eq!(full.volumes, [volume]);
    }
}
