//! The garbage collector of Kubernetes, played: what belongs to an object that is gone goes too.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::DeleteParams;
use kube::{Api, Client, Resource, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};
use serde::de::DeserializeOwned;

use crate::watched::Watched;
use crate::world::{Failure, owner};

/// Collects in one namespace.
pub struct GarbageCollector {
    batch_jobs: Watched<BatchJob>,
    services: Watched<InferenceService>,
    deployments: Watched<Deployment>,
    kube_services: Watched<Service>,
    config_maps: Watched<ConfigMap>,
    secrets: Watched<Secret>,
    policies: Watched<NetworkPolicy>,
    budgets: Watched<PodDisruptionBudget>,
    client: Client,
    namespace: String,
}

impl GarbageCollector {
    /// Begins to watch.
    pub fn start(client: Client, namespace: &str) -> Self {
        Self {
            batch_jobs: Watched::start(Api::namespaced(client.clone(), namespace)),
            services: Watched::start(Api::namespaced(client.clone(), namespace)),
            deployments: Watched::start(Api::namespaced(client.clone(), namespace)),
            kube_services: Watched::start(Api::namespaced(client.clone(), namespace)),
            config_maps: Watched::start(Api::namespaced(client.clone(), namespace)),
            secrets: Watched::start(Api::namespaced(client.clone(), namespace)),
            policies: Watched::start(Api::namespaced(client.clone(), namespace)),
            budgets: Watched::start(Api::namespaced(client.clone(), namespace)),
            client,
            namespace: namespace.to_owned(),
        }
    }

    /// Deletes pods of Jobs that are gone, and what belongs to jobs and services that are gone.
    pub async fn collect(&self, jobs: &[Arc<Job>], pods: &[Arc<Pod>]) -> Result<(), Failure> {
        for pod in pods {
            let uid = owner(pod);
            if !uid.is_empty() && !jobs.iter().any(|job| job.uid().as_ref() == Some(&uid)) {
                self.delete(&**pod).await?;
            }
        }
        self.collect_orphans(jobs).await?;
        self.collect_orphans(&self.services.all()).await?;
        self.collect_orphans(&self.deployments.all()).await?;
        self.collect_orphans(&self.kube_services.all()).await?;
        self.collect_orphans(&self.config_maps.all()).await?;
        self.collect_orphans(&self.secrets.all()).await?;
        self.collect_orphans(&self.policies.all()).await?;
        self.collect_orphans(&self.budgets.all()).await
    }

    async fn collect_orphans<K>(&self, children: &[Arc<K>]) -> Result<(), Failure>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        for child in children {
            for owner in child.owner_references() {
                let is_gone = match owner.kind.as_str() {
                    "BatchJob" => self.is_gone(&self.batch_jobs, owner).await?,
                    "InferenceService" => self.is_gone(&self.services, owner).await?,
                    _ => false,
                };
                if is_gone {
                    self.delete(&**child).await?;
                }
            }
        }
        Ok(())
    }

    async fn is_gone<K>(&self, owners: &Watched<K>, owner: &OwnerReference) -> Result<bool, Failure>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync,
    {
        let is_it = |other: &K| other.meta().uid.as_ref() == Some(&owner.uid);
        if owners.all().iter().any(|other| is_it(other)) {
            return Ok(false);
        }
        // A watch lags: what is not in it may have been made just now.
        let now = self.api::<K>().get_opt(&owner.name).await?;
        Ok(!now.is_some_and(|other| is_it(&other)))
    }

    async fn delete<K>(&self, object: &K) -> Result<(), Failure>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let now = DeleteParams::background().grace_period(0);
        match self.api::<K>().delete(&object.name_any(), &now).await {
            Ok(_) => Ok(()),
            // The watch it was seen in lags too.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}
