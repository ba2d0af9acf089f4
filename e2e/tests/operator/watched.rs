//! Objects as a watch keeps them.

use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;

/// All objects of a kind in the namespace, as a watch keeps them.
pub struct Watched<K: Resource<DynamicType = ()> + Clone + 'static> {
    store: reflector::Store<K>,
    _watching: AbortOnDropHandle<()>,
}

impl<K> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync,
{
    /// Begins to watch.
    pub fn start(api: Api<K>) -> Self {
        let (store, writer) = reflector::store();
        let events = watcher(api, watcher::Config::default())
            .default_backoff()
            .reflect(writer);
        let watching = tokio::spawn(events.for_each(|_| std::future::ready(())));
        Self {
            store,
            _watching: AbortOnDropHandle::new(watching),
        }
    }

    /// What is there now.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }
}
