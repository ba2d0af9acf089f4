//! All objects of both kinds, as last seen.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::batch_job::standing::shards_left;
use crate::names::service_of;

/// How often it is asked whether all objects have been seen.
const READY_INTERVAL: Duration = Duration::from_millis(50);

/// A kind of object that lies in a namespace.
pub trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}

impl<K> Namespaced for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

/// The controllers' copies of all objects.
#[derive(Debug, Clone)]
pub struct Objects {
    /// The jobs.
    pub jobs: Store<BatchJob>,
    /// The services.
    pub services: Store<InferenceService>,
}

/// What waits for a service and who works on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// Shards that no commit stands for yet.
    pub shards: u64,
    /// Pods that should serve.
    pub replicas: u32,
}

impl Objects {
    /// Waits until all objects have been seen once: before, what is there would look absent.
    pub async fn synced(&self) {
        let Self { jobs, services } = self;
        let both =
            || async { futures::join!(jobs.wait_until_ready(), services.wait_until_ready()) };
        // A store that gets ready wakes the last one alone of those who wait for it, and its own
        // controller is one of them: so nobody waits for long without asking again. A store ends with
        // its controller, and so do the visits.
        while tokio::time::timeout(READY_INTERVAL, both()).await.is_err() {}
    }

    /// A service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<InferenceService>> {
        self.services.get(&ObjectRef::new(name).within(namespace))
    }

    /// A job.
    pub fn job(&self, namespace: &str, name: &str) -> Option<Arc<BatchJob>> {
        self.jobs.get(&ObjectRef::new(name).within(namespace))
    }

    /// The job of this id.
    pub fn job_of_uid(&self, uid: &str) -> Option<Arc<BatchJob>> {
        self.jobs
            .find(|job| job.metadata.uid.as_deref() == Some(uid))
    }

    /// The jobs of a service, whether or not it is there.
    pub fn jobs_of(&self, namespace: &str, service: &str) -> Vec<Arc<BatchJob>> {
        let mut jobs = self.jobs.state();
        jobs.retain(|job| {
            let is_there = job.namespace().as_deref() == Some(namespace);
            is_there && job.other_manager().is_none() && service_of(job) == service
        });
        jobs
    }

    /// The jobs whose rows a service answers, whoever's workers work for them.
    pub fn jobs_asking(&self, namespace: &str, service: &str) -> Vec<Arc<BatchJob>> {
        let mut jobs = self.jobs.state();
        jobs.retain(|job| {
            let asks = || job.spec.services().contains(&service);
            job.namespace().as_deref() == Some(namespace) && (service_of(job) == service || asks())
        });
        jobs
    }

    /// The backlog of a service, if there is one of that name.
    pub fn backlog(&self, namespace: &str, name: &str) -> Option<Backlog> {
        let service = self.service(namespace, name)?;
        let jobs = self.jobs_of(namespace, name);
        let left = jobs.iter().filter_map(|job| shards_left(job));
        let replicas = service.status.as_ref().and_then(|status| status.replicas);
        Some(Backlog {
            shards: left.map(u64::from).sum(),
            replicas: replicas.unwrap_or(0),
        })
    }
}
