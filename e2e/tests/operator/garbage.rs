//! The garbage collector of Kubernetes, played: what belongs to an object that is gone goes too.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::DeleteParams;
use kube::{Api, Client, Resource, ResourceExt};
use millrace_crds::BatchJob;
use serde::de::DeserializeOwned;

use crate::watched::Watched;
use crate::world::{Failure, owner};

/// Collects in one namespace.
pub struct GarbageCollector {
    batch_jobs: Watched<BatchJob>,
    config_maps: Watched<ConfigMap>,
    policies: Watched<NetworkPolicy>,
    client: Client,
    namespace: String,
}

impl GarbageCollector {
    /// Begins to watch.
    pub fn start(client: Client, namespace: &str) -> Self {
        Self {
            batch_jobs: Watched::start(Api::namespaced(client.clone(), namespace)),
            config_maps: Watched::start(Api::namespaced(client.clone(), namespace)),
            policies: Watched::start(Api::namespaced(client.clone(), namespace)),
            client,
            namespace: namespace.to_owned(),
        }
    }

    /// Deletes pods of Jobs that are gone, and what belongs to BatchJobs that are gone.
    pub async fn collect(&self, jobs: &[Arc<Job>], pods: &[Arc<Pod>]) -> Result<(), Failure> {
        for pod in pods {
            let uid = owner(pod);
            if !uid.is_empty() && !jobs.iter().any(|job| job.uid().as_ref() == Some(&uid)) {
                self.delete(&**pod).await?;
            }
        }
        for job in jobs {
            self.collect_of_batch_job(&**job).await?;
        }
        for config_map in self.config_maps.all() {
            self.collect_of_batch_job(&*config_map).await?;
        }
        for policy in self.policies.all() {
            self.collect_of_batch_job(&*policy).await?;
        }
        Ok(())
    }

    async fn collect_of_batch_job<K>(&self, child: &K) -> Result<(), Failure>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let mut owners = child.owner_references().iter();
        let Some(owner) = owners.find(|owner| owner.kind == "BatchJob") else {
            return Ok(());
        };
        let is_it = |job: &BatchJob| job.metadata.uid.as_ref() == Some(&owner.uid);
        if self.batch_jobs.all().iter().any(|job| is_it(job)) {
            return Ok(());
        }
        // A watch lags: what is not in it may have been made just now.
        let now: Api<BatchJob> = self.api();
        let now = now.get_opt(&owner.name).await?;
        if now.is_some_and(|job| is_it(&job)) {
            return Ok(());
        }
        self.delete(child).await
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
