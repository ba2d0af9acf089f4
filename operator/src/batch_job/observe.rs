//! What a visit sees: the job's service, its pods' reports, and the counters of its leases.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use millrace_crds::inference_service::Pricing;
use millrace_crds::{BatchJob, InferenceService};
use millrace_leases::limits::{self, Account};
use millrace_leases::{LeaseStore, RunKey, Snapshot};
use millrace_protocol::indexes::Indexes;
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use millrace_protocol::report::Report;

use super::meter::Pace;
use super::standing::{Standing, give_up, standing};
use crate::context::{Context, unless_away};
use crate::names::{self, service_of};
use crate::pods::{creation_failure, mount_failure, waits_for};
use crate::visit::VisitError;

/// Shards that were given up, of which the indexes are read at a time.
const DEAD_PAGE: usize = 10_000;

/// Most such readings in a visit; the manifest names all that were given up.
const DEAD_PAGES_MAX: usize = 4;

/// What a visit sees.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which run the job is in.
    pub standing: Standing,
    /// The time of this visit.
    pub now: Time,
    /// The job's service; of several the first one, whose workers work for the job.
    pub service: Option<Arc<InferenceService>>,
    /// The other services of a job with routes, as far as they are there.
    pub others: Vec<Arc<InferenceService>>,
    /// The step that plans.
    pub plan: Step,
    /// The step that finishes.
    pub finish: Step,
    /// The counters of the leases; absent while the lease store is away.
    pub leases: Option<Snapshot>,
    /// Indexes of the shards that were given up, in short.
    pub failed_indexes: Option<String>,
    /// What the job has paid, if its service names prices and the lease store knows it.
    pub account: Option<Account>,
    /// How fast the run gets on.
    pub pace: Option<Pace>,
}

impl Seen {
    /// What calls of the job's services cost, as far as they say so.
    pub fn pricing(&self) -> Option<&Pricing> {
        let mut services = self.service.iter().chain(&self.others);
        services.find_map(|service| service.spec.pricing())
    }
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It was not asked: the leases say that the run is planned and at work, or the job is over.
    Unasked,
    /// It was not begun.
    Absent,
    /// Its pod is about to run or runs; with what it waits for, if it waits.
    Running(Option<String>),
    /// It ended and reported.
    Ended(Report),
    /// It failed for good, with the last reason that was reported.
    Failed(String),
}

/// Where the leases of one of the job's runs are.
pub fn run_key(job: &BatchJob, run: RunNumber) -> RunKey {
    RunKey {
        namespace: job.namespace().unwrap_or_default(),
        job: job.name_any(),
        uid: job.uid(),
        run,
    }
}

/// Looks at everything that concerns the job. A visit to a job at work asks the leases alone.
pub async fn observe(ctx: &Context, job: &BatchJob) -> Result<Seen, VisitError> {
    let namespace = job.namespace().unwrap_or_default();
    let (standing, now) = (standing(job), ctx.now());
    let mut seen = Seen {
        standing,
        service: ctx.objects().service(&namespace, &service_of(job)),
        others: (job.spec.services().into_iter().skip(1))
            .filter_map(|name| ctx.objects().service(&namespace, name))
            .collect(),
        plan: Step::Unasked,
        finish: Step::Unasked,
        leases: None,
        failed_indexes: None,
        account: None,
        pace: None,
        now,
    };
    if standing.is_over {
        return Ok(seen);
    }
    let run = run_key(job, standing.run);
    seen.leases = unless_away(ctx.leases_of(&run)?.snapshot().await)?;
    seen.failed_indexes = failed_indexes(ctx, job, &seen, &run).await?;
    seen.account = account(ctx, job, &seen, &run).await?;
    let given_up = give_up(job, standing, seen.leases.as_ref(), seen.account, &seen.now);
    let is_given_up = given_up.is_some();
    let at_work = |leases: Snapshot| leases.known && leases.open + leases.leased > 0;
    if let Some(leases) = seen.leases {
        seen.pace = ctx.pace(&run, leases)?;
    }
    let name = |step| names::step(&job.name_any(), step, standing.run);
    if is_given_up || !seen.leases.is_some_and(at_work) {
        seen.plan = step(ctx, &namespace, &name("plan")).await?;
        seen.finish = step(ctx, &namespace, &name("finish")).await?;
        // A plan that ended since the leases were asked has filled them: only those that do not know
        // the run after that have lost it.
        let is_lost = seen.leases.is_some_and(|leases| !leases.known);
        if is_lost && matches!(seen.plan, Step::Ended(_)) {
            seen.leases = unless_away(ctx.leases_of(&run)?.snapshot().await)?;
        }
    } else if lacks_estimate(job, &seen) {
        // Only what it reported matters of a plan that is at work.
        let plan = step(ctx, &namespace, &name("plan")).await?;
        if matches!(plan, Step::Ended(_)) {
            seen.plan = plan;
        }
    }
    Ok(seen)
}

/// Whether the job asks an API, and it is not known yet what it is going to take. A run of failed rows is
/// not guessed at.
fn lacks_estimate(job: &BatchJob, seen: &Seen) -> bool {
    let mut services = seen.service.iter().chain(&seen.others);
    let is_remote = services.any(|it| it.spec.remote.is_some());
    let estimate = job.status.as_ref().and_then(|it| it.estimate.as_ref());
    let is_guessed = seen.standing.run == FIRST_RUN;
    is_remote && is_guessed && (estimate.is_none() || seen.standing.is_new)
}

/// Indexes of the shards that were given up. Those that the status names already are not asked for again.
async fn failed_indexes(
    ctx: &Context,
    job: &BatchJob,
    seen: &Seen,
    run: &RunKey,
) -> Result<Option<String>, VisitError> {
    let dead = seen.leases.map_or(0, |leases| leases.dead);
    if dead == 0 {
        return Ok(None);
    }
    let status = job.status.as_ref().filter(|_| !seen.standing.is_new);
    let known = status.and_then(|it| it.shards.map(|shards| u64::from(shards.failed)));
    let named = status.and_then(|it| it.failed_indexes.as_ref());
    if known == Some(dead) && named.is_some() {
        return Ok(named.cloned());
    }
    let leases = ctx.leases_of(run)?;
    let mut indexes = Indexes::default();
    let mut first = 0;
    for _ in 0..DEAD_PAGES_MAX {
        let Some(page) = unless_away(leases.dead(first, DEAD_PAGE).await)? else {
            return Ok(named.cloned());
        };
        page.iter().for_each(|index| indexes.push(*index));
        match page.last() {
            Some(last) if page.len() == DEAD_PAGE && !indexes.is_full() => first = last + 1,
            _ => return Ok(indexes.into_text()),
        }
    }
    indexes.cut();
    Ok(indexes.into_text())
}

/// What the job has paid, if anybody may know.
async fn account(
    ctx: &Context,
    job: &BatchJob,
    seen: &Seen,
    run: &RunKey,
) -> Result<Option<Account>, VisitError> {
    let own = job.own_service();
    let own = own.as_ref().and_then(|service| service.spec.pricing());
    if own.or(seen.pricing()).is_none() {
        return Ok(None);
    }
    let accounts = ctx.accounts(run, &payer(job))?;
    let name = limits::account(&job.name_any(), job.uid().as_deref());
    Ok(unless_away(accounts.find(&name).await)?.flatten())
}

/// Under which name the account of the job is kept: that of its service, or that of all jobs which ask
/// several.
pub fn payer(job: &BatchJob) -> String {
    match job.spec.routes {
        Some(_) => limits::ACCOUNTS_OF_SEVERAL.to_owned(),
        None => service_of(job),
    }
}

async fn step(ctx: &Context, namespace: &str, name: &str) -> Result<Step, VisitError> {
    let jobs: Api<Job> = Api::namespaced(ctx.client.clone(), namespace);
    let Some(job) = jobs.get_opt(name).await.map_err(VisitError::Observe)? else {
        return Ok(Step::Absent);
    };
    if job.metadata.deletion_timestamp.is_some() {
        return Ok(Step::Running(Some("the last one is being deleted".into())));
    }
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
    let pods = pods.list(&of_job).await.map_err(VisitError::Observe)?;
    let step = step_of(&job, &pods.items);
    if step != Step::Running(None) {
        return Ok(step);
    }
    let (client, now) = (&ctx.client, ctx.now());
    let failure = match pods.items.is_empty() {
        true => creation_failure(client, namespace, &job, &now).await,
        false => mount_failure(client, namespace, &pods.items, &now).await,
    };
    Ok(Step::Running(failure.map_err(VisitError::Observe)?))
}

/// How far a step is, by its Job and that Job's pods.
fn step_of(job: &Job, pods: &[Pod]) -> Step {
    let mut pods: Vec<&Pod> = pods.iter().collect();
    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
    let mut reports = pods.iter().rev().filter_map(|pod| container(pod));
    let last = reports.find_map(terminated_message);
    let status = job.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let is = |kind: &str| {
        let found = conditions.iter().find(|it| it.type_ == kind);
        found.filter(|it| it.status == "True")
    };
    if is("Complete").is_some() {
        return match last.as_deref().and_then(Report::from_message) {
            Some(report) => Step::Ended(report),
            // What it reported is gone with its pod, as after a node was drained. Steps may be done
            // twice: as where something is missing, it is done once more.
            None => Step::Ended(Report::Incomplete { shards: 0 }),
        };
    }
    if let Some(failed) = is("Failed") {
        let reason = match last.as_deref().and_then(Report::from_message) {
            Some(Report::Failed { message }) => message,
            _ => failed.message.clone().unwrap_or_default(),
        };
        return Step::Failed(reason);
    }
    Step::Running(pods.iter().rev().find_map(|pod| waits_for(pod)))
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

fn terminated_message(container: &ContainerStatus) -> Option<String> {
    let of = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state.as_ref()?.terminated.as_ref()?.message.clone()
    };
    of(&container.state).or_else(|| of(&container.last_state))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(condition: Option<&str>) -> Job {
        let conditions = condition.map(
            |kind| json!([{"type": kind, "status": "True", "message": "BackoffLimitExceeded"}]),
        );
        serde_json::from_value(json!({"metadata": {}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn pod(state: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {},
            "status": {"containerStatuses": [{
                "name": "step", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": state,
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn a_step_is_as_far_as_its_job_and_pods_say() {
        let check = |job: Job, pods: Vec<Pod>, expected: Step| {
            assert_eq!(step_of(&job, &pods), expected);
        };
        let planned = Report::Planned {
            shards: 3,
            committed: 1,
            forecast: None,
        };
        let ended =
            |message: String| pod(json!({"terminated": {"exitCode": 0, "message": message}}));
        check(job(None), vec![], Step::Running(None));
        let once_more = Step::Ended(Report::Incomplete { shards: 0 });
        check(job(Some("Complete")), vec![], once_more);
        check(
            job(Some("Complete")),
            vec![ended(planned.clone().to_message())],
            Step::Ended(planned),
        );
        check(
            job(Some("Failed")),
            vec![ended(Report::failed("no such bucket").to_message())],
            Step::Failed("no such bucket".into()),
        );
        check(
            job(Some("Failed")),
            vec![ended("Killed".into())],
            Step::Failed("BackoffLimitExceeded".into()),
        );
        let waiting = pod(
            json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"s\" not found"}}),
        );
        let reason = "CreateContainerConfigError: secret \"s\" not found";
        check(job(None), vec![waiting], Step::Running(Some(reason.into())));
    }
}
