//! Whether the services of a job with routes can answer together. Pure.
//!
//! The workers of the first service work for the job, beside its server if it has one. The others they
//! ask from there, with those services' keys and within their limits, so that these must be APIs
//! elsewhere.

use std::sync::Arc;

use kube::ResourceExt;
use millrace_crds::{BatchJob, InferenceService, SecretRef};

use super::check::Refused;
use crate::inference_service::key_secret;

/// The services of a job besides `first`, of those that were `seen`.
pub fn others(
    job: &BatchJob,
    first: &InferenceService,
    seen: &[Arc<InferenceService>],
) -> Result<Vec<InferenceService>, Refused> {
    let named = job.spec.services().into_iter().skip(1);
    let other = |name: &str| {
        let found = seen.iter().find(|service| service.name_any() == name);
        let other = found.ok_or_else(|| Refused::service_not_found(job, name))?;
        check(first, other)?;
        Ok(other.as_ref().clone())
    };
    named.map(other).collect()
}

/// Whether the workers of `first` can ask the other service.
fn check(first: &InferenceService, other: &InferenceService) -> Result<(), Refused> {
    let (workers, name) = (first.name_any(), other.name_any());
    if other.spec.remote.is_none() {
        let message = format!(
            "spec.routes: InferenceService {name:?} has a server, beside which no worker of {workers:?} \
             stands, the first service of the routes, whose workers work for the job. Name {name:?} in \
             the first route, or give it a condition there; all other services must be ones with \
             spec.remote"
        );
        return Err(Refused::permanent("RouteNotRemote", message));
    }
    let is_mounted = |secret: &SecretRef| {
        first.spec.secrets.contains(secret) || key_secret(first).as_ref() == Some(secret)
    };
    match key_secret(other).filter(|secret| !is_mounted(secret)) {
        None => Ok(()),
        Some(secret) => {
            let message = format!(
                "spec.routes: list {:?} in spec.secrets of InferenceService {workers:?}, whose workers \
                 ask {name:?} for this job, with the key in it",
                secret.name
            );
            Err(Refused::permanent("SecretNotShared", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> InferenceService {
        let manifest = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": name}, "spec": spec,
        });
        serde_json::from_value(manifest).unwrap()
    }

    fn api(name: &str, secrets: Value) -> InferenceService {
        let remote = json!({
            "baseUrl": "https://api.example.com/v1", "api": "Chat", "model": name,
            "apiKeySecretRef": {"name": format!("{name}-key")},
        });
        service(name, json!({"remote": remote, "secrets": secrets}))
    }

    /// The reason and the message of the refusal, if there is one.
    fn refused(
        first: InferenceService,
        seen: Vec<InferenceService>,
    ) -> Option<(&'static str, String)> {
        let job = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob", "metadata": {"name": "job"},
            "spec": {
                "routes": [
                    {"name": "cheap", "serviceRef": {"name": "mini"}},
                    {"name": "strong", "serviceRef": {"name": "large"}},
                ],
                "steps": [{"name": "a"}],
                "input": {"uris": ["s3://bucket/a.jsonl"]}, "output": {"uri": "s3://bucket/out"},
            },
        });
        let job = serde_json::from_value(job).unwrap();
        let seen: Vec<_> = seen.into_iter().map(Arc::new).collect();
        let refused = others(&job, &first, &seen).err()?;
        Some((refused.reason, refused.message))
    }

    #[test]
    fn a_route_is_refused_that_the_workers_cannot_ask() {
        let models = json!([{"name": "m", "task": "Embedding", "source": {"uri": "hf://a/b"}}]);
        let shared = json!([{"name": "large-key"}]);
        let large = || api("large", json!([]));
        assert_eq!(refused(api("mini", shared.clone()), vec![large()]), None);
        let own = service("mini", json!({"models": models, "secrets": shared}));
        assert_eq!(refused(own, vec![large()]), None);
        let server = service("large", json!({"models": models}));
        for (first, seen, reason) in [
            (api("mini", json!([])), vec![large()], "SecretNotShared"),
            (api("mini", shared.clone()), vec![server], "RouteNotRemote"),
            (api("mini", shared), vec![], "ServiceNotFound"),
        ] {
            let (found, message) = refused(first, seen).expect(reason);
            assert_eq!(found, reason);
            assert!(message.starts_with("spec.routes: "), "{message}");
        }
    }
}
