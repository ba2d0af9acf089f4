//! What every visit needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use millrace_leases::{
    JobRegistry, LeaseError, LeaseOptions, RedisLeaseStore, RedisOptions, RunKey,
};

use crate::config::Options;
use crate::metrics::VisitMetrics;
use crate::names::FIELD_MANAGER;

/// What every visit needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Settings of the operator.
    pub options: Options,
    /// What is counted over visits.
    pub visits: VisitMetrics,
    redis: RedisOptions,
    recorder: Recorder,
    /// Lease stores by run: each keeps its connection, and a visit comes every second.
    stores: Mutex<HashMap<String, Arc<RedisLeaseStore>>>,
    /// Registries by namespace and service, for the same reason.
    registries: Mutex<HashMap<(String, String), Arc<JobRegistry>>>,
}

impl Context {
    /// A context. Connects to nothing yet.
    pub fn new(client: Client, options: Options) -> Self {
        let reporter = Reporter {
            controller: "millrace-operator".into(),
            instance: Some(options.identity.clone()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            redis: RedisOptions::new(options.redis_url.clone()),
            stores: Mutex::default(),
            registries: Mutex::default(),
            visits: VisitMetrics::default(),
            client,
            options,
        }
    }

    /// The time of this visit.
    pub fn now(&self) -> Time {
        Time(k8s_openapi::jiff::Timestamp::now())
    }

    /// The leases of a run.
    pub fn leases(&self, run: &RunKey) -> Result<Arc<RedisLeaseStore>, LeaseError> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let key = run.key("");
        if let Some(store) = stores.get(&key) {
            return Ok(store.clone());
        }
        // Only workers hold leases, so their options mean nothing here.
        let store = RedisLeaseStore::new(&self.redis, run, LeaseOptions::default())?;
        let store = Arc::new(store);
        stores.insert(key, store.clone());
        Ok(store)
    }

    /// Forgets the connection of a run that is over.
    pub fn close(&self, run: &RunKey) {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.remove(&run.key(""));
    }

    /// The jobs that the workers of a service are told of.
    pub fn registry(&self, namespace: &str, service: &str) -> Result<Arc<JobRegistry>, LeaseError> {
        let mut registries = self
            .registries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), service.to_owned());
        if let Some(registry) = registries.get(&key) {
            return Ok(registry.clone());
        }
        let registry = Arc::new(JobRegistry::new(&self.redis, namespace, service)?);
        registries.insert(key, registry.clone());
        Ok(registry)
    }

    /// Whether the Redis of the leases answers. Asks for what nothing was ever written to.
    pub async fn leases_answer(&self) -> bool {
        match self.registry(&self.options.namespace, FIELD_MANAGER) {
            Ok(registry) => registry.list().await.is_ok(),
            Err(_) => false,
        }
    }

    /// Says on an object that something happened. An Event that is lost changes nothing.
    pub async fn say<K>(&self, object: &K, kind: EventType, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note[..note.floor_char_boundary(1024)].to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&());
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(%error, reason, "an event was lost");
        }
    }
}
