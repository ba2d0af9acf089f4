//! The answers that are kept before APIs elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_answers::disk::Disk;
use millrace_answers::{Cache, CacheOptions, Lookups};
use millrace_crds::inference_service::Cache as CacheSpec;
use millrace_leases::LeaseError;
use millrace_protocol::registry::CacheCounts;

use crate::job::Remote;

/// Where answers are kept. Not printable, since the URL of a Redis may hold a password.
pub struct CachesOptions {
    /// Whose answers they are: namespaces share none.
    pub namespace: String,
    /// Redis that shares them with other workers.
    pub redis_url: Option<String>,
    /// Folder that keeps them over runs. With it they are kept whatever the service says.
    pub disk: Option<Arc<Disk>>,
    /// Counts what is sought.
    pub lookups: Lookups,
}

/// The caches of one process, each made when it is first needed: one for each service that jobs ask.
pub struct Caches {
    options: CachesOptions,
    made: Mutex<HashMap<String, (CacheSpec, Arc<Cache>)>>,
}

impl Caches {
    /// Caches that keep answers there.
    pub fn new(options: CachesOptions) -> Self {
        Self {
            options,
            made: Mutex::default(),
        }
    }

    /// The cache before the API of a service, if its answers are kept. A service that says something
    /// else than before gets another one. Needs a runtime.
    pub fn of(&self, remote: &Remote) -> Result<Option<Arc<Cache>>, LeaseError> {
        let CachesOptions {
            namespace,
            redis_url,
            disk,
            lookups,
        } = &self.options;
        let CacheSpec {
            enabled,
            ttl_seconds,
            max_bytes,
        } = remote.cache;
        if !enabled && disk.is_none() {
            return Ok(None);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((spec, cache)) = made.get(&remote.service)
            && *spec == remote.cache
        {
            return Ok(Some(cache.clone()));
        }
        let options = CacheOptions {
            ttl: Duration::from_secs(ttl_seconds.into()),
            bytes_max: max_bytes,
            redis_url: redis_url.clone(),
            disk: disk.clone(),
            namespace: namespace.clone(),
        };
        let cache = Cache::new(options, lookups.clone())?;
        let kept = (remote.cache.clone(), cache.clone());
        made.insert(remote.service.clone(), kept);
        Ok(Some(cache))
    }

    /// What was known so far.
    pub fn counts(&self) -> CacheCounts {
        self.options.lookups.counts()
    }

    /// Waits until what was said is kept where others find it.
    pub async fn flush(&self) {
        let made: Vec<Arc<Cache>> = {
            let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.values().map(|(_, cache)| cache.clone()).collect()
        };
        for cache in made {
            cache.flush().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_answers::Keys;
    use millrace_answers::disk::DiskOptions;
    use serde_json::json;

    use super::*;

    fn remote(enabled: bool, ttl_seconds: u32) -> Remote {
        let spec = json!({"baseUrl": "https://a/v1", "api": "Chat", "model": "m"});
        Remote {
            spec: serde_json::from_value(spec).unwrap(),
            service: "api".to_owned(),
            cache: CacheSpec {
                enabled,
                ttl_seconds,
                ..CacheSpec::default()
            },
        }
    }

    fn caches(disk: Option<Disk>) -> Caches {
        Caches::new(CachesOptions {
            namespace: "default".to_owned(),
            redis_url: None,
            disk: disk.map(Arc::new),
            lookups: Lookups::default(),
        })
    }

    #[tokio::test]
    async fn a_service_has_one_cache_until_it_says_something_else() {
        let caches = caches(None);
        let of = |enabled, ttl_seconds| caches.of(&remote(enabled, ttl_seconds)).unwrap();
        assert!(of(false, 60).is_none());
        let first = of(true, 60).unwrap();
        assert!(Arc::ptr_eq(&first, &of(true, 60).unwrap()));
        assert!(!Arc::ptr_eq(&first, &of(true, 30).unwrap()));
        first.get(&Keys::new(&[[0; 32]], false, &["a".to_owned()]).get(0));
        assert_eq!(caches.counts(), CacheCounts { hits: 0, misses: 1 });
    }

    #[tokio::test]
    async fn with_a_folder_answers_are_kept_whatever_the_service_says() {
        let folder = tempfile::tempdir().unwrap();
        let options = DiskOptions {
            folder: folder.path().to_owned(),
            bytes_max: 1 << 20,
        };
        let disk = Disk::open(options, Duration::from_secs(60), Lookups::default());
        let caches = caches(disk.await.unwrap());
        assert!(caches.of(&remote(false, 60)).unwrap().is_some());
    }
}
