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

    /// Waits until the folder has what was said.
    pub async fn flush(&self) {
        if let Some(disk) = &self.options.disk {
            disk.flush().await;
        }
    }
}
