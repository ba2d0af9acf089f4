//! Secrets that are written and never read: the operator has no right to look whether they are there.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::Client;

use crate::apply::apply_unseen;

/// How long pods may miss a Secret that was written: a kubelet looks again after a while.
const STILL_MISSED: Duration = Duration::from_secs(10);

/// The Secret that this process wrote for an object.
#[derive(Debug, Default)]
pub struct WrittenSecret {
    /// What was written last, and when.
    written: Mutex<Option<(Secret, Instant)>>,
}

impl WrittenSecret {
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
        *self.written() = Some((secret, Instant::now()));
        Ok(())
    }

    fn is_due(&self, secret: &Secret, is_missed: bool, now: Instant) -> bool {
        let written = self.written();
        let Some((before, at)) = &*written else {
            return true;
        };
        before != secret || (is_missed && now.duration_since(*at) >= STILL_MISSED)
    }

    fn written(&self) -> MutexGuard<'_, Option<(Secret, Instant)>> {
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
        let (written, start) = (WrittenSecret::default(), Instant::now());
        let is_due = |url, is_missed, seconds| {
            written.is_due(
                &secret(url),
                is_missed,
                start + Duration::from_secs(seconds),
            )
        };
        assert!(is_due("redis://a", false, 0), "nobody knows of it");
        *written.written() = Some((secret("redis://a"), start));
        assert!(!is_due("redis://a", false, 86_400), "whenever that was");
        assert!(is_due("redis://b", false, 0));
        assert!(!is_due("redis://a", true, 1), "pods have not looked again");
        assert!(is_due("redis://a", true, 10));
    }
}
