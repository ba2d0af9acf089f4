//! What every visit needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use millrace_leases::limits::Accounts;
use millrace_leases::{
    JobRegistry, LeaseError, LeaseOptions, RedisLeaseStore, RedisOptions, RunKey, Snapshot,
    UsersError,
};

use crate::apply::Children;
use crate::batch_job::meter::{Counted, Meter, Pace};
use crate::config::Options;
use crate::metrics::VisitMetrics;
use crate::names::FIELD_MANAGER;
use crate::objects::Objects;
use crate::pod_redis::PodRedis;
use crate::secrets::WrittenSecrets;

/// Shortest time between two writes of a job's status.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What every visit needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Settings of the operator.
    pub options: Options,
    /// What this process applied.
    pub children: Children,
    /// The Secrets that this process wrote.
    pub secrets: WrittenSecrets,
    /// What is counted over visits.
    pub visits: VisitMetrics,
    redis: RedisOptions,
    /// The Redis of the leases, for pods.
    pub leases: PodRedis,
    /// The Redis in which services keep answers, for pods, where there is one.
    pub cache: Option<PodRedis>,
    recorder: Recorder,
    /// Lease stores by run: each keeps its connection, and a visit comes every second.
    stores: Mutex<HashMap<String, Arc<RedisLeaseStore>>>,
    /// Registries by namespace and service, for the same reason.
    registries: Mutex<HashMap<(String, String), Arc<JobRegistry>>>,
    /// What jobs have paid, by namespace and service.
    accounts: Mutex<HashMap<(String, String), Arc<Accounts>>>,
    /// How fast runs get on.
    meters: Mutex<HashMap<String, Meter>>,
    /// When the statuses of jobs were written lately, by the jobs' ids.
    statuses_written: Mutex<HashMap<String, Instant>>,
    /// All objects of both kinds, as last seen, once this process leads.
    pub objects: OnceLock<Objects>,
}

impl Context {
    /// A context. Connects to nothing yet.
    pub fn new(client: Client, options: Options) -> Result<Self, UsersError> {
        let reporter = Reporter {
            controller: "millrace-operator".into(),
            instance: Some(options.identity.clone()),
        };
        let url = options.redis_url.clone();
        let leases = PodRedis::new("leases", url.clone(), options.leases_namespace_users)?;
        let cache = options.cache_redis_url.clone();
        let cache = cache.map(|url| PodRedis::new("cache", url, options.cache_namespace_users));
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter),
            redis: RedisOptions::new(url),
            leases,
            cache: cache.transpose()?,
            stores: Mutex::default(),
            registries: Mutex::default(),
            accounts: Mutex::default(),
            meters: Mutex::default(),
            statuses_written: Mutex::default(),
            children: Children::default(),
            secrets: WrittenSecrets::default(),
            objects: OnceLock::new(),
            visits: VisitMetrics::default(),
            client,
            options,
        })
    }

    /// All objects of both kinds, as last seen.
    pub fn objects(&self) -> &Objects {
        self.objects
            .get()
            .expect("visits begin after the controllers whose copies these are")
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
    pub fn leases_of(&self, run: &RunKey) -> Result<Arc<RedisLeaseStore>, LeaseError> {
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

    /// Makes the users again that a Redis loses, for as long as the process lives.
    pub async fn keep_users(&self) {
        let of_cache = async {
            if let Some(cache) = &self.cache {
                cache.keep_users().await;
            }
        };
        futures::join!(self.leases.keep_users(), of_cache);
    }

    /// Forgets a run that is over: its leases, the connection to them and its pace.
    pub async fn close(&self, run: &RunKey) {
        if let Ok(leases) = self.leases_of(run)
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

    /// How long the status of a job has to wait until it may be written again; nothing if it may be
    /// now.
    pub fn status_wait(&self, job_uid: &str) -> Option<Duration> {
        let written = self.statuses_written().get(job_uid)?.elapsed();
        STATUS_INTERVAL.checked_sub(written)
    }

    /// Notes that the status of a job was written. Forgets those that wait for nothing any more.
    pub fn note_status(&self, job_uid: String) {
        let mut written = self.statuses_written();
        written.retain(|_, at| at.elapsed() < STATUS_INTERVAL);
        written.insert(job_uid, Instant::now());
    }

    fn statuses_written(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        let written = self.statuses_written.lock();
        written.unwrap_or_else(PoisonError::into_inner)
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

    /// What the jobs of a service have paid.
    pub fn accounts(&self, namespace: &str, service: &str) -> Result<Arc<Accounts>, LeaseError> {
        let mut all = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), service.to_owned());
        if let Some(accounts) = all.get(&key) {
            return Ok(accounts.clone());
        }
        let accounts = Arc::new(Accounts::new(&self.redis, namespace, service)?);
        all.insert(key, accounts.clone());
        Ok(accounts)
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

/// What the lease store answered; nothing while it is away: a later visit asks again.
pub fn unless_away<T>(answer: Result<T, LeaseError>) -> Result<Option<T>, LeaseError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_unavailable() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[tokio::test]
    async fn the_status_of_a_job_is_written_once_a_second() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let options = Options::parse_from([
            "operator",
            "--worker-image=w",
            "--server-image=s",
            "--redis-url=redis://127.0.0.1:1",
        ]);
        let ctx = Context::new(Client::try_from(config).unwrap(), options).unwrap();
        assert_eq!(ctx.status_wait("one"), None);
        ctx.note_status("one".to_owned());
        let wait = ctx.status_wait("one").unwrap();
        assert!(wait <= STATUS_INTERVAL && wait > STATUS_INTERVAL / 2);
        assert_eq!(ctx.status_wait("another"), None);
    }
}
