//! Reads everything that `status` tells of a job. What this account may not read is left out, with
//! the reason.

use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use millrace_crds::names::{JOB_LABEL, SERVICE_LABEL, label_value};
use millrace_crds::{BatchJob, InferenceService};
use serde::de::DeserializeOwned;

use super::connect::Connection;
use super::explain;
use super::workers::worker;
use millrace_crds::names::service_of;

/// Objects whose events are asked for at a time.
const REQUESTS_AT_ONCE: usize = 8;

/// Pods of the service whose events are asked for: those that are not well, and no more.
const UNWELL_PODS_MAX: usize = 5;

/// Events asked for per object.
const EVENTS_PER_OBJECT_MAX: u32 = 50;

/// What can be told of a job.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The job.
    pub job: BatchJob,
    /// The pods of its service, or why they are not known.
    pub pods: Result<Vec<Pod>, String>,
    /// The events of the job, its steps and its service, the oldest first, or why they are not known.
    pub events: Result<Vec<Event>, String>,
}

/// Reads what belongs to the job.
pub async fn gather(connection: &Connection, job: BatchJob) -> anyhow::Result<Seen> {
    let pods = connection.service_pods(&service_of(&job)).await?;
    let events = events(connection, &job, pods.as_deref().unwrap_or_default()).await?;
    Ok(Seen { job, pods, events })
}

impl Connection {
    /// The pods of a service, or that this account may not list them.
    pub async fn service_pods(&self, service: &str) -> anyhow::Result<Result<Vec<Pod>, String>> {
        self.listed("pods", &selector(SERVICE_LABEL, service)).await
    }

    /// The pods of the steps of a job, or that this account may not list them.
    pub async fn step_pods(&self, job: &str) -> anyhow::Result<Result<Vec<Pod>, String>> {
        self.listed("pods", &selector(JOB_LABEL, job)).await
    }

    async fn listed<K>(
        &self,
        plural: &str,
        params: &ListParams,
    ) -> anyhow::Result<Result<Vec<K>, String>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        match api.list(params).await {
            Ok(list) => Ok(Ok(list.items)),
            Err(error) if explain::is_forbidden(&error) => Ok(Err(format!(
                "this account lacks the right to list {plural} in namespace {}",
                self.namespace
            ))),
            Err(error) => {
                let doing = format!("list {plural} in namespace {}", self.namespace);
                Err(self.explain(error, &doing))
            }
        }
    }
}

fn selector(label: &str, name: &str) -> ListParams {
    ListParams::default().labels(&format!("{label}={}", label_value(name)))
}

/// The events of the job, of the Jobs and pods of its steps, of its service, and of those pods of
/// the service that are not well.
async fn events(
    connection: &Connection,
    job: &BatchJob,
    service_pods: &[Pod],
) -> anyhow::Result<Result<Vec<Event>, String>> {
    let name = job.name_any();
    let mut uids: Vec<String> = job.uid().into_iter().collect();
    let steps: Result<Vec<Job>, String> = connection
        .listed("jobs", &selector(JOB_LABEL, &name))
        .await?;
    uids.extend(steps.iter().flatten().filter_map(ResourceExt::uid));
    let step_pods = connection.step_pods(&name).await?;
    uids.extend(step_pods.iter().flatten().filter_map(ResourceExt::uid));
    uids.extend(service_uid(connection, &service_of(job)).await);
    let unwell = service_pods.iter().filter(|pod| {
        let (ready, asked) = worker(pod).ready;
        ready < asked
    });
    uids.extend(unwell.take(UNWELL_PODS_MAX).filter_map(ResourceExt::uid));
    let asked = uids.iter().map(|uid| async move {
        let of_object = ListParams::default()
            .fields(&format!("involvedObject.uid={uid}"))
            .limit(EVENTS_PER_OBJECT_MAX);
        connection.listed::<Event>("events", &of_object).await
    });
    let mut answers = futures::stream::iter(asked).buffer_unordered(REQUESTS_AT_ONCE);
    let mut events = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer? {
            Ok(found) => events.extend(found),
            Err(forbidden) => return Ok(Err(forbidden)),
        }
    }
    events.sort_by_key(super::events::last_seen);
    Ok(Ok(events))
}

/// The id of the service, if it is there and may be read: its events are told, and nothing else.
async fn service_uid(connection: &Connection, name: &str) -> Option<String> {
    let services: Api<InferenceService> =
        Api::namespaced(connection.client.clone(), &connection.namespace);
    services.get(name).await.ok()?.uid()
}
