//! What every visit needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};
use millrace_crds::InferenceService;
use millrace_leases::{
    JobRegistry, LeaseError, LeaseOptions, RedisLeaseStore, RedisOptions, RunKey, Snapshot,
};

use crate::batch_job::meter::{Counted, Meter, Pace};
use crate::config::Options;
use crate::metrics::{Objects, VisitMetrics};
use crate::names::FIELD_MANAGER;

/// How often it is asked whether all objects have been seen.
const READY_INTERVAL: Duration = Duration::from_millis(50);

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
    /// How fast runs get on.
    meters: Mutex<HashMap<String, Meter>>,
    /// All objects of both kinds, as last seen, once this process leads.
    pub objects: OnceLock<Objects>,
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
            meters: Mutex::default(),
            objects: OnceLock::new(),
            visits: VisitMetrics::default(),
            client,
            options,
        }
    }

    /// Waits until all objects have been seen once: before, what is there would look absent.
    pub async fn synced(&self) {
        let Objects { jobs, services } = self.objects();
        let both =
            || async { futures::join!(jobs.wait_until_ready(), services.wait_until_ready()) };
        // A store that gets ready wakes the last one alone of those who wait for it, and its own
        // controller is one of them: so nobody waits for long without asking again. A store ends with
        // its controller, and so do the visits.
        while tokio::time::timeout(READY_INTERVAL, both()).await.is_err() {}
    }

    /// All objects of both kinds, as last seen.
    pub fn objects(&self) -> &Objects {
        self.objects
            .get()
            .expect("visits begin after the controllers whose copies these are")
    }

    /// A service, as last seen.
    pub fn service(&self, namespace: &str, name: &str) -> Option<InferenceService> {
        let reference = ObjectRef::new(name).within(namespace);
        self.objects()
            .services
            .get(&reference)
            .map(|service| service.as_ref().clone())
    }

    /// How fast a run gets on, given where it is now.
    pub fn pace(&self, run: &RunKey, leases: Snapshot) -> Option<Pace> {
        let counted = Counted {
            rows: leases.tally.rows.total(),
            shards: leases.done + leases.dead,
        };
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let meter = meters.entry(run.key("")).or_default();
        meter.observe(counted, Instant::now())
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

    /// Forgets a run that is over: its leases, the connection to them and its pace.
    pub async fn close(&self, run: &RunKey) {
        if let Ok(leases) = self.leases(run)
            && let Err(error) = leases.forget().await
        {
            tracing::debug!(%error, "the leases of a run that is over stay until they expire");
        }
        let key = run.key("");
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.remove(&key);
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        meters.remove(&key);
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
