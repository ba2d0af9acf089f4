//! What every visit needs.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};
use millrace_crds::{BatchJob, InferenceService};
use millrace_leases::limits::Accounts;
use millrace_leases::{
    JobRegistry, LeaseError, LeaseOptions, RedisLeaseStore, RedisOptions, RunKey, Snapshot,
    UsersError,
};

use crate::apply::Children;
use crate::batch_job::ReaderTries;
use crate::batch_job::meter::{Counted, Meter, Pace};
use crate::config::Options;
use crate::metrics::VisitMetrics;
use crate::names::FIELD_MANAGER;
use crate::objects::Objects;
use crate::pod_redis::PodRedis;
use crate::remembered::{Flag, Memory, Remembered, kept};
use crate::secrets::WrittenSecret;

/// Shortest time between two writes of a job's status.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What is remembered of a job.
#[derive(Default)]
pub struct JobMemory {
    /// What this process applied for it.
    pub children: Children,
    /// How its reader was tried to be made.
    pub reader: ReaderTries,
    /// Whether the workers of a service that is missing were told that the job rests.
    pub was_withdrawn: Flag,
    /// The run that it is in.
    run: Mutex<Option<Arc<RunMemory>>>,
    /// When its status was written.
    status_written: Mutex<Option<Instant>>,
}

/// What is remembered of a run, as long as it is not over.
struct RunMemory {
    run: RunKey,
    /// Keeps its connection, since a visit comes every second.
    leases: Arc<RedisLeaseStore>,
    /// What the run has paid; for the same reason.
    accounts: Mutex<Option<Arc<Accounts>>>,
    /// How fast it gets on.
    meter: Mutex<Meter>,
}

/// What is remembered of a service.
#[derive(Default)]
pub struct ServiceMemory {
    /// What this process applied for it.
    pub children: Children,
    /// The Secret that its pods have the leases from.
    pub secret: WrittenSecret,
    /// Whether the number of its pods was left to another autoscaler.
    pub are_replicas_left: Flag,
    /// The jobs that its workers are told of.
    registry: Mutex<Option<Arc<JobRegistry>>>,
}

impl Memory for JobMemory {
    fn children(&self) -> &Children {
        &self.children
    }
}

impl Memory for ServiceMemory {
    fn children(&self) -> &Children {
        &self.children
    }
}

impl JobMemory {
    /// How long the status of the job has to wait until it may be written again; nothing if it may be
    /// now.
    pub fn status_wait(&self, now: Instant) -> Option<Duration> {
        let written = now.saturating_duration_since((*self.status_written())?);
        STATUS_INTERVAL.checked_sub(written)
    }

    /// Notes that the status of the job was written.
    pub fn note_status(&self, now: Instant) {
        *self.status_written() = Some(now);
    }

    fn status_written(&self) -> MutexGuard<'_, Option<Instant>> {
        let written = self.status_written.lock();
        written.unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> MutexGuard<'_, Option<Arc<RunMemory>>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every visit needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Settings of the operator.
    pub options: Options,
    /// What is remembered of jobs.
    pub jobs: Arc<Remembered<BatchJob, JobMemory>>,
    /// What is remembered of services.
    pub services: Arc<Remembered<InferenceService, ServiceMemory>>,
    /// What is counted over visits.
    pub visits: VisitMetrics,
    redis: RedisOptions,
    /// The Redis of the leases, for pods.
    pub leases: PodRedis,
    /// The Redis in which services keep answers, for pods, where there is one.
    pub cache: Option<PodRedis>,
    recorder: Recorder,
    /// What the Redis of the leases is asked by who only wants to know whether it answers.
    probe: Mutex<Option<Arc<JobRegistry>>>,
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
            probe: Mutex::default(),
            jobs: Arc::default(),
            services: Arc::default(),
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

    /// What is remembered of a job.
    pub fn of_job(&self, job: &BatchJob) -> Arc<JobMemory> {
        let job = ObjectRef::from_obj(job);
        self.jobs.of(&job, &self.objects().jobs)
    }

    /// What is remembered of a service, which may be one that is not there.
    pub fn of_service(&self, namespace: &str, service: &str) -> Arc<ServiceMemory> {
        let service = ObjectRef::new(service).within(namespace);
        self.services.of(&service, &self.objects().services)
    }

    /// How fast a run gets on, given where it is now.
    pub fn pace(&self, run: &RunKey, leases: Snapshot) -> Result<Option<Pace>, LeaseError> {
        let counted = Counted {
            rows: leases.tally.rows.total(),
            shards: leases.done + leases.dead,
        };
        let run = self.of_run(run)?;
        let mut meter = run.meter.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(meter.observe(counted, Instant::now()))
    }

    /// The time of this visit.
    pub fn now(&self) -> Time {
        Time(k8s_openapi::jiff::Timestamp::now())
    }

    /// The leases of a run.
    pub fn leases_of(&self, run: &RunKey) -> Result<Arc<RedisLeaseStore>, LeaseError> {
        Ok(self.of_run(run)?.leases.clone())
    }

    /// What is remembered of a run. What was of an earlier one of the job is forgotten.
    fn of_run(&self, run: &RunKey) -> Result<Arc<RunMemory>, LeaseError> {
        let job = ObjectRef::new(&run.job).within(&run.namespace);
        let of_job = self.jobs.of(&job, &self.objects().jobs);
        let mut of_run = of_job.run();
        if let Some(there) = of_run.as_ref().filter(|there| there.run == *run) {
            return Ok(there.clone());
        }
        // Only workers hold leases, so their options mean nothing here.
        let leases = RedisLeaseStore::new(&self.redis, run, LeaseOptions::default())?;
        let made = Arc::new(RunMemory {
            run: run.clone(),
            leases: Arc::new(leases),
            accounts: Mutex::default(),
            meter: Mutex::default(),
        });
        *of_run = Some(made.clone());
        Ok(made)
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

    /// Forgets a run that is over: its leases, the connections to them and its pace.
    pub async fn close(&self, run: &RunKey) {
        if let Ok(leases) = self.leases_of(run)
            && let Err(error) = leases.forget().await
        {
            tracing::debug!(%error, "the leases of a run that is over stay until they expire");
        }
        let job = ObjectRef::new(&run.job).within(&run.namespace);
        if let Some(job) = self.jobs.find(&job) {
            *job.run() = None;
            // Most of them are the run's own.
            job.children.forget();
        }
    }

    /// The jobs that the workers of a service are told of.
    pub fn registry(&self, namespace: &str, service: &str) -> Result<Arc<JobRegistry>, LeaseError> {
        let of_service = self.of_service(namespace, service);
        kept(&of_service.registry, || {
            JobRegistry::new(&self.redis, namespace, service)
        })
    }

    /// What a run has paid, and others whose account is kept under the name of its `payer`.
    pub fn accounts(&self, run: &RunKey, payer: &str) -> Result<Arc<Accounts>, LeaseError> {
        let of_run = self.of_run(run)?;
        kept(&of_run.accounts, || {
            Accounts::new(&self.redis, &run.namespace, payer)
        })
    }

    /// Whether the Redis of the leases answers. Asks for what nothing was ever written to.
    pub async fn leases_answer(&self) -> bool {
        let probe = kept(&self.probe, || {
            JobRegistry::new(&self.redis, &self.options.namespace, FIELD_MANAGER)
        });
        match probe {
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
    use super::*;

    #[test]
    fn the_status_of_a_job_is_written_once_a_second() {
        let (job, now) = (JobMemory::default(), Instant::now());
        assert_eq!(job.status_wait(now), None);
        job.note_status(now);
        assert_eq!(job.status_wait(now), Some(STATUS_INTERVAL));
        let later = now + STATUS_INTERVAL / 4;
        assert_eq!(job.status_wait(later), Some(STATUS_INTERVAL / 4 * 3));
        assert_eq!(job.status_wait(now + STATUS_INTERVAL * 2), None);
    }
}
