//! The Deployment controller, and the workers in the pods of a service.

use std::cmp::Reverse;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use millrace_leases::{Claim, JobRegistry, LeaseStore};
use serde_json::json;

use super::store::lock;
use super::{Failure, Players, run_of};

impl Players {
    /// The Deployment controller, the scheduler and the kubelet: as many pods as should be are.
    pub(super) async fn scale(&self, deployment: &Deployment) -> Result<(), Failure> {
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let observed = status.observed_generation;
        if observed == deployment.metadata.generation {
            return Ok(());
        }
        let status = json!({
            "observedGeneration": deployment.metadata.generation,
            "replicas": wanted, "updatedReplicas": wanted,
            "readyReplicas": wanted, "availableReplicas": wanted,
        });
        self.set_status::<Deployment>(&deployment.name_any(), status)
            .await
    }

    /// The workers in the pods of a service: each turn one shard is committed, of the job with the
    /// highest priority that has one.
    pub(super) async fn work(&mut self, deployment: &Deployment) -> Result<(), Failure> {
        let status = deployment.status.clone().unwrap_or_default();
        if status.ready_replicas.unwrap_or(0) == 0 {
            return Ok(());
        }
        // A reader of results serves none.
        let Some(service) = service_of(deployment) else {
            return Ok(());
        };
        if !self.registries.contains_key(&service) {
            let registry = JobRegistry::new(&self.redis, &self.namespace, &service)?;
            self.registries.insert(service.clone(), registry);
        }
        let mut jobs = self.registries[&service].list().await?;
        jobs.sort_by_key(|(_, job)| Reverse(job.priority));
        for (_, job) in jobs {
            let run = run_of(&job.manifests)?;
            if !lock(&self.store).may_commit() {
                continue;
            }
            let store = self.store.clone();
            let leases = self.leases(&run)?;
            if let Claim::Lease(lease) = leases.claim("worker").await? {
                let tally = lock(&store).commit(&run, lease.shard);
                leases.acknowledge(&lease, &tally).await?;
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The service whose jobs the workers of a Deployment attend to.
fn service_of(deployment: &Deployment) -> Option<String> {
    let spec = deployment.spec.template.spec.as_ref()?;
    // Where an API elsewhere answers, the worker is no sidecar.
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let mut variables = containers.flat_map(|container| container.env.iter().flatten());
    let name = variables.find(|variable| variable.name == "MILLRACE_SERVICE_NAME")?;
    name.value.clone()
}
