//! What a visit sees: the jobs that wait for the service, its workers, and its pods.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};
use millrace_protocol::registry::WorkerReport;

use crate::batch_job::standing::{reason, shards_left, standing, succeeded, until_deadline};
use crate::context::{Context, unless_away};
use crate::names::{SERVICE_LABEL, label_value, leases_secret};
use crate::pods::{mount_failure, waits_for};
use crate::reasons::{self, Class};
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
    /// Whether a pod of the service, or of a step of its jobs, waits for the Secret with the leases.
    pub is_leases_secret_missed: bool,
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
    /// Whether any worker spoke lately.
    pub fn has_workers(&self) -> bool {
        (self.workers.as_ref()).is_some_and(|workers| !workers.is_empty())
    }

    /// Pods that serve.
    pub fn ready_pods(&self) -> u32 {
        let is_ready = |pod: &&Pod| {
            let conditions = pod
                .status
                .iter()
                .flat_map(|it| it.conditions.iter().flatten());
            let mut ready = conditions.filter(|it| it.type_ == "Ready");
            pod.metadata.deletion_timestamp.is_none() && ready.any(|it| it.status == "True")
        };
        self.pods.iter().filter(is_ready).count() as u32
    }

    /// Shards that no commit stands for yet, over all jobs.
    pub fn backlog_shards(&self) -> u64 {
        self.work.iter().map(|work| work.shards).sum()
    }
}

/// Looks at everything that concerns the service.
pub async fn observe(ctx: &Context, service: &InferenceService) -> Result<Seen, VisitError> {
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let mut seen = Seen::default();
    let mut names = Vec::new();
    let now = ctx.now();
    let leases = leases_secret(&name);
    for job in ctx.objects().jobs_of(&namespace, &name) {
        names.push(job.name_any());
        seen.work.extend(work(&job, &now));
        seen.is_planning |= reason(&job) == Some("Planning");
        seen.is_at_work |= is_at_work(&job);
        // What the pod of a step waits for stands there.
        let succeeded = job.status.as_ref().and_then(succeeded);
        seen.is_leases_secret_missed |= succeeded.is_some_and(|it| names_it(&it.message, &leases));
    }
    let registry = ctx.registry(&namespace, &name)?;
    let asked = async { Ok((registry.list().await?, registry.workers().await?)) };
    if let Some((registered, workers)) = unless_away(asked.await)? {
        let registered = registered.into_iter().map(|(name, _)| name);
        seen.gone = registered.filter(|name| !names.contains(name)).collect();
        seen.workers = Some(workers);
    }
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &namespace);
    let of_service = format!("{SERVICE_LABEL}={}", label_value(&name));
    let of_service = ListParams::default().labels(&of_service);
    let pods = pods.list(&of_service).await.map_err(VisitError::Observe)?;
    seen.pods = pods.items;
    let mut waits = seen.pods.iter().filter_map(waits_for);
    seen.is_leases_secret_missed |= waits.clone().any(|it| names_it(&it, &leases));
    seen.pods_wait_for = waits.next();
    if seen.pods_wait_for.is_none() {
        let failure = mount_failure(&ctx.client, &namespace, &seen.pods, &now).await;
        seen.pods_wait_for = failure.map_err(VisitError::Observe)?;
    }
    Ok(seen)
}

/// Whether a text names an object: its name is in it, and not as a part of another one.
fn names_it(text: &str, name: &str) -> bool {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    text.split(|c| !is_of_name(c)).any(|word| word == name)
}

/// Whether the job's state changes without its user, or is about to since its user asked for it.
fn is_at_work(job: &BatchJob) -> bool {
    let standing = standing(job);
    let goes_on = reason(job) == Some("Suspended") && !job.spec.suspend;
    let is_moving = reason(job).is_none_or(|reason| reasons::of_job(reason) == Class::Moving);
    is_moving || goes_on || standing.is_new || standing.is_resumed
}

/// What the job's workers have still to do.
fn work(job: &BatchJob, now: &Time) -> Option<Work> {
    let left = shards_left(job)?;
    let status = job.status.as_ref()?;
    let shards = status.shards?;
    let tokens = status.tokens.filter(|_| shards.committed > 0);
    let tokens = tokens.map(|tokens| tokens as f64 / f64::from(shards.committed) * f64::from(left));
    let deadline = until_deadline(job, standing(job), now);
    Some(Work {
        shards: u64::from(left),
        tokens,
        deadline_seconds: deadline.map(|left| left.as_secs_f64()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_at_work_from_when_it_is_asked_to_go_on() {
        let check = |reason: &str, spec: serde_json::Value, expected: bool| {
            let mut job = serde_json::json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
                "metadata": {"name": "job"},
                "spec": {
                    "serviceRef": {"name": "service"},
                    "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
                },
                "status": {"run": 1, "conditions": [{
                    "type": "Succeeded", "reason": reason, "message": "",
                    "status": if reason == "Completed" { "True" } else { "Unknown" },
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }]},
            });
            for (key, value) in spec.as_object().unwrap() {
                job["spec"][key] = value.clone();
            }
            let job = serde_json::from_value(job).unwrap();
            assert_eq!(is_at_work(&job), expected, "{reason} {spec}");
        };
        check("Running", serde_json::json!({}), true);
        check("Suspended", serde_json::json!({"suspend": true}), false);
        check("Suspended", serde_json::json!({"suspend": false}), true);
        check("Completed", serde_json::json!({}), false);
        check("Completed", serde_json::json!({"rerunFailed": 1}), true);
        check("UnknownModel", serde_json::json!({}), false);
    }

    #[test]
    fn a_secret_is_missed_by_whoever_waits_for_it_by_name() {
        let check = |text: &str, expected: bool| {
            assert_eq!(names_it(text, "minilm-leases"), expected, "{text}");
        };
        check(
            "CreateContainerConfigError: secret \"minilm-leases\" not found",
            true,
        );
        check("couldn't find key url in Secret tenant/minilm-leases", true);
        check("secret \"all-minilm-leases\" not found", false);
        check("secret \"minilm\" not found", false);
    }
}
