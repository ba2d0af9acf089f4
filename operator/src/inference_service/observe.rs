//! What a visit sees: the jobs that wait for the service, its workers, and its pods.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};
use millrace_protocol::registry::WorkerReport;

use crate::conditions::find;
use crate::context::Context;
use crate::names::{SERVICE_LABEL, label_value, service_of};
use crate::pods::{mount_failure, waits_for};
use crate::visit::VisitError;

/// What a visit sees.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The jobs at work.
    pub work: Vec<Work>,
    /// Whether a job is being planned: its backlog is about to come.
    pub is_planning: bool,
    /// Whether a job is on its way from one state to the next.
    pub is_at_work: bool,
    /// Jobs that the workers are told of and that are gone.
    pub gone: Vec<String>,
    /// What the workers say of themselves, by pod; absent while the lease store is away.
    pub workers: Option<Vec<(String, WorkerReport)>>,
    /// The pods of the service.
    pub pods: Vec<Pod>,
    /// What a pod of the service waits for.
    pub pods_wait_for: Option<String>,
}

/// What a job at work has still to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Shards that no commit stands for yet.
    pub shards: u64,
    /// Tokens in them, judged by those that are done; absent before one is.
    pub tokens: Option<f64>,
    /// Seconds until the job's deadline, if it has one.
    pub deadline_seconds: Option<f64>,
}

impl Seen {
    /// Shards that no commit stands for yet, over all jobs.
    pub fn backlog_shards(&self) -> u64 {
        self.work.iter().map(|work| work.shards).sum()
    }
}

/// Looks at everything that concerns the service.
pub async fn observe(ctx: &Context, service: &InferenceService) -> Result<Seen, VisitError> {
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let jobs: Vec<_> = ctx.objects().jobs.state();
    let jobs = jobs
        .iter()
        .filter(|job| job.namespace().as_deref() == Some(&namespace) && service_of(job) == name);
    let mut seen = Seen::default();
    let mut names = Vec::new();
    let now = ctx.now();
    for job in jobs {
        names.push(job.name_any());
        seen.work.extend(work(job, &now));
        seen.is_planning |= reason(job) == Some("Planning");
        seen.is_at_work |= is_at_work(job);
    }
    let registry = ctx.registry(&namespace, &name)?;
    let asked = async { Ok((registry.list().await?, registry.workers().await?)) };
    match asked.await {
        Ok((registered, workers)) => {
            let registered = registered.into_iter().map(|(name, _)| name);
            seen.gone = registered.filter(|name| !names.contains(name)).collect();
            seen.workers = Some(workers);
        }
        // Whoever is gone is taken away by a later visit.
        Err(error) if millrace_leases::LeaseError::is_unavailable(&error) => {}
        Err(error) => return Err(error.into()),
    }
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &namespace);
    let of_service = format!("{SERVICE_LABEL}={}", label_value(&name));
    let of_service = ListParams::default().labels(&of_service);
    let pods = pods.list(&of_service).await.map_err(VisitError::Observe)?;
    seen.pods = pods.items;
    seen.pods_wait_for = seen.pods.iter().find_map(waits_for);
    if seen.pods_wait_for.is_none() {
        let failure = mount_failure(&ctx.client, &namespace, &seen.pods, &now).await;
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
    const MOVING: [&str; 6] = [
        "Planning",
        "Running",
        "LeasesUnavailable",
        "Finishing",
        "Cancelling",
        "Expiring",
    ];
    reason(job).is_none_or(|reason| MOVING.contains(&reason))
}

/// Shards that the job's workers have still to do.
pub(crate) fn backlog(job: &BatchJob) -> u64 {
    left(job).map_or(0, u64::from)
}

fn left(job: &BatchJob) -> Option<u32> {
    if !matches!(reason(job), Some("Running" | "LeasesUnavailable")) {
        return None;
    }
    let shards = job.status.as_ref()?.shards?;
    Some(
        shards
            .total
            .saturating_sub(shards.committed + shards.failed),
    )
}

/// What the job's workers have still to do.
fn work(job: &BatchJob, now: &Time) -> Option<Work> {
    let left = left(job)?;
    let status = job.status.as_ref()?;
    let shards = status.shards?;
    let tokens = status.tokens.filter(|_| shards.committed > 0);
    let tokens = tokens.map(|tokens| tokens as f64 / f64::from(shards.committed) * f64::from(left));
    let began = status.start_time.as_ref();
    let deadline = began.zip(job.spec.active_deadline_seconds);
    let deadline_seconds = deadline.map(|(began, seconds)| {
        let passed = now.0.duration_since(began.0).as_secs_f64();
        (f64::from(seconds) - passed).max(0.0)
    });
    Some(Work {
        shards: u64::from(left),
        tokens,
        deadline_seconds,
    })
}
