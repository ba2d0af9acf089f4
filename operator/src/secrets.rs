//! Secrets that are written and never read: the operator has no right to look whether they are there.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::runtime::reflector::ObjectRef;

use crate::apply::{REMEMBERED_MAX, apply_unseen};

/// How long pods may miss a Secret that was written: a kubelet looks again after a while.
const STILL_MISSED: Duration = Duration::from_secs(10);

/// The Secrets that this process wrote.
#[derive(Debug, Default)]
pub struct WrittenSecrets {
    /// What was written last, and when.
    written: Mutex<HashMap<ObjectRef<Secret>, (Secret, Instant)>>,
}

impl WrittenSecrets {
    /// Writes `secret`, unless the same was written last and no pod misses it.
    pub async fn apply(
        &self,
        client: &Client,
        namespace: &str,
        secret: Secret,
        is_missed: bool,
    ) -> Result<(), kube::Error> {
        if !self.is_due(&secret, is_missed, Instant::now()) {
            return Ok(());
        }
        apply_unseen(client, namespace, &secret).await?;
        self.note(secret, Instant::now());
        Ok(())
    }

    fn is_due(&self, secret: &Secret, is_missed: bool, now: Instant) -> bool {
        let written = self.written();
        let Some((before, at)) = written.get(&ObjectRef::from_obj(secret)) else {
            return true;
        };
        before != secret || (is_missed && now.duration_since(*at) >= STILL_MISSED)
    }

    /// Forgets everything once there is too much, which costs one more write of each.
    fn note(&self, secret: Secret, now: Instant) {
        let mut written = self.written();
        if written.len() >= REMEMBERED_MAX {
            written.clear();
        }
        written.insert(ObjectRef::from_obj(&secret), (secret, now));
    }

    fn written(&self) -> MutexGuard<'_, HashMap<ObjectRef<Secret>, (Secret, Instant)>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(url: &str) -> Secret {
        let metadata = json!({"name": "minilm-leases", "namespace": "tenant"});
        serde_json::from_value(json!({"metadata": metadata, "stringData": {"url": url}})).unwrap()
    }

    #[test]
    fn a_secret_is_written_again_only_if_it_changed_or_pods_miss_it() {
        let (secrets, start) = (WrittenSecrets::default(), Instant::now());
        let is_due = |url, is_missed, seconds| {
            secrets.is_due(
                &secret(url),
                is_missed,
                start + Duration::from_secs(seconds),
            )
        };
        assert!(is_due("redis://a", false, 0), "nobody knows of it");
        secrets.note(secret("redis://a"), start);
        assert!(!is_due("redis://a", false, 86_400), "whenever that was");
        assert!(is_due("redis://b", false, 0));
        assert!(!is_due("redis://a", true, 1), "pods have not looked again");
        assert!(is_due("redis://a", true, 10));
    }
}
