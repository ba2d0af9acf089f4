//! What a visit sees: the jobs that wait for the service, and who is registered with its workers.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};

use super::ServiceContext;
use crate::conditions::find;
use crate::names::{SERVICE_LABEL, label_value};
use crate::pods::{mount_failure, waits_for};
use crate::visit::VisitError;

/// What a visit sees.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Shards that no commit stands for yet, over all jobs at work.
    pub backlog_shards: u64,
    /// Whether a job is being planned: its backlog is about to come.
    pub is_planning: bool,
    /// Whether a job is on its way from one state to the next.
    pub is_at_work: bool,
    /// Whether the lease store is away, which holds what the workers are told.
    pub leases_are_away: bool,
    /// Jobs that the workers are told of and that are gone.
    pub gone: Vec<String>,
    /// What a pod of the service waits for.
    pub pods_wait_for: Option<String>,
}

/// Looks at everything that concerns the service.
pub async fn observe(ctx: &ServiceContext, service: &InferenceService) -> Result<Seen, VisitError> {
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let jobs: Vec<_> = ctx.jobs.state();
    let jobs = jobs.iter().filter(|job| {
        job.namespace().as_deref() == Some(&namespace) && job.spec.service_ref.name == name
    });
    let mut seen = Seen::default();
    let mut names = Vec::new();
    for job in jobs {
        names.push(job.name_any());
        seen.backlog_shards += backlog(job);
        seen.is_planning |= reason(job) == Some("Planning");
        seen.is_at_work |= is_at_work(job);
    }
    let registry = ctx.base.registry(&namespace, &name)?;
    match registry.list().await {
        Ok(registered) => {
            let registered = registered.into_iter().map(|(name, _)| name);
            seen.gone = registered.filter(|name| !names.contains(name)).collect();
        }
        // Whoever is gone is taken away by a later visit.
        Err(error) if error.is_unavailable() => seen.leases_are_away = true,
        Err(error) => return Err(error.into()),
    }
    let pods: Api<Pod> = Api::namespaced(ctx.base.client.clone(), &namespace);
    let of_service = format!("{SERVICE_LABEL}={}", label_value(&name));
    let of_service = ListParams::default().labels(&of_service);
    let pods = pods.list(&of_service).await.map_err(VisitError::Observe)?;
    seen.pods_wait_for = pods.items.iter().find_map(waits_for);
    if seen.pods_wait_for.is_none() {
        let (client, now) = (&ctx.base.client, ctx.base.now());
        let failure = mount_failure(client, &namespace, &pods.items, &now).await;
        seen.pods_wait_for = failure.map_err(VisitError::Observe)?;
    }
    Ok(seen)
}

fn reason(job: &BatchJob) -> Option<&str> {
    let status = job.status.as_ref()?;
    find(&status.conditions, "Succeeded").map(|condition| condition.reason.as_str())
}

/// Whether the job's state changes without its user.
fn is_at_work(job: &BatchJob) -> bool {
    const MOVING: [&str; 4] = ["Planning", "Running", "LeasesUnavailable", "Finishing"];
    reason(job).is_none_or(|reason| MOVING.contains(&reason))
}

/// Shards that the job's workers have still to do.
fn backlog(job: &BatchJob) -> u64 {
    if !matches!(reason(job), Some("Running" | "LeasesUnavailable")) {
        return 0;
    }
    let shards = job.status.as_ref().and_then(|status| status.shards);
    shards.map_or(0, |shards| {
        u64::from(shards.total).saturating_sub(u64::from(shards.committed + shards.failed))
    })
}
