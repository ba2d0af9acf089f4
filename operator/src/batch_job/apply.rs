//! Brings about what was decided.

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use millrace_crds::{BatchJob, InferenceService};
use millrace_leases::limits;
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use millrace_protocol::registry::RegisteredJob;

use super::check::Checked;
use super::decide::{Decision, MadeStep, Phase, Workers};
use super::observe::{Seen, payer, run_key};
use super::standing::GiveUp;
use super::{build, notify};
use crate::apply::delete;
use crate::context::{Context, unless_away};
use crate::names::{self, service_of};
use crate::prune;
use crate::visit::VisitError;

/// What was brought about: a report takes it as proof that it happened.
pub struct Applied;

/// Makes and unmakes steps, and tells the workers.
pub async fn apply(
    ctx: &Context,
    job: &BatchJob,
    seen: &Seen,
    decision: &Decision,
) -> Result<Applied, VisitError> {
    let Decision {
        phase,
        workers,
        make,
        unmake,
        again_in: _,
    } = decision;
    let namespace = job.namespace().unwrap_or_default();
    let run = seen.standing.run;
    match phase {
        Phase::Over => return Ok(Applied),
        Phase::Expired => {
            delete::<BatchJob>(&ctx.client, &namespace, &job.name_any())
                .await
                .map_err(VisitError::Apply)?;
            return Ok(Applied);
        }
        _ => {}
    }
    if let Some(step) = unmake {
        let name = names::step(&job.name_any(), step, run);
        delete::<Job>(&ctx.client, &namespace, &name)
            .await
            .map_err(VisitError::Apply)?;
    }
    if let Some(service) = own_service(job, phase) {
        let children = &ctx.of_job(job).children;
        let applied = children.apply(&ctx.client, &namespace, service).await;
        applied.map_err(VisitError::Apply)?;
    }
    if matches!(
        phase,
        Phase::Planning(_) | Phase::Finishing(_) | Phase::GivingUp(..)
    ) {
        guard_steps(ctx, job).await?;
    }
    if let Some(made) = make
        && !is_past(ctx, job, run).await?
    {
        make_step(ctx, job, made).await?;
    }
    // At the end once more, for a visit that was cut off between making a plan and this.
    if run > FIRST_RUN && (matches!(phase, Phase::Planning(_)) || phase.is_end()) {
        prune::earlier_runs(&ctx.client, job, run)
            .await
            .map_err(VisitError::Apply)?;
    }
    tell(ctx, job, seen, *workers).await?;
    if phase.is_end() {
        end(ctx, job, seen, phase).await?;
    }
    Ok(Applied)
}

/// Makes a step, with what its pod mounts: a step that is there counts as made, so that must be there
/// before it.
async fn make_step(ctx: &Context, job: &BatchJob, made: &MadeStep) -> Result<(), VisitError> {
    let namespace = job.namespace().unwrap_or_default();
    let manifests = build::manifests(job, &made.checked, made.run);
    let config_map = build::config_map(job, &manifests, made.run);
    let step = build::step(job, made, &ctx.options);
    let of_job = ctx.of_job(job);
    let done = async {
        let (client, children) = (&ctx.client, &of_job.children);
        children.apply(client, &namespace, config_map).await?;
        children.apply(client, &namespace, step).await
    };
    done.await.map_err(VisitError::Apply)?;
    Ok(())
}

/// Tells of the end of a run, and takes away what nobody needs after it.
async fn end(ctx: &Context, job: &BatchJob, seen: &Seen, phase: &Phase) -> Result<(), VisitError> {
    let namespace = job.namespace().unwrap_or_default();
    if let Some(notify) = notifier(ctx, job, seen, phase) {
        guard_steps(ctx, job).await?;
        ctx.of_job(job)
            .children
            .apply(&ctx.client, &namespace, notify)
            .await
            .map_err(VisitError::Apply)?;
    }
    close_account(ctx, job, seen, phase).await;
    ctx.close(&run_key(job, seen.standing.run)).await;
    if build::own_service(job).is_some() {
        delete::<InferenceService>(&ctx.client, &namespace, &service_of(job))
            .await
            .map_err(VisitError::Apply)?;
    }
    Ok(())
}

/// Whether this visit sees the job as it was in an earlier run. Nothing is made then, and what it has to
/// say is refused.
async fn is_past(ctx: &Context, job: &BatchJob, run: RunNumber) -> Result<bool, VisitError> {
    let has_next = prune::has_next_run(&ctx.client, job, run).await;
    has_next.map_err(VisitError::Observe)
}

/// Settles what the pods of steps may reach: before there is one, and as long as one may be there.
async fn guard_steps(ctx: &Context, job: &BatchJob) -> Result<(), VisitError> {
    let namespace = job.namespace().unwrap_or_default();
    let policy = build::network_policy(job, &ctx.options);
    let of_job = ctx.of_job(job);
    let guarded = of_job.children.apply(&ctx.client, &namespace, policy).await;
    guarded.map_err(VisitError::Apply)?;
    Ok(())
}

/// The Job that tells of an end that no step tells of, beside the pods of the job's service, if it has
/// one.
fn notifier(ctx: &Context, job: &BatchJob, seen: &Seen, phase: &Phase) -> Option<Job> {
    let template = build::service_template(job, seen.service.as_deref());
    notify::job(job, seen.standing.run, phase, &template, &ctx.options)
}

/// Closes what the job has paid into, unless it may still go on.
async fn close_account(ctx: &Context, job: &BatchJob, seen: &Seen, phase: &Phase) {
    if seen.account.is_none() || matches!(phase, Phase::GivenUp(GiveUp::BudgetSpent, _)) {
        return;
    }
    let name = limits::account(&job.name_any(), job.uid().as_deref());
    let run = run_key(job, seen.standing.run);
    let closed = match ctx.accounts(&run, &payer(job)) {
        Ok(accounts) => accounts.close(&name).await,
        Err(error) => Err(error),
    };
    if let Err(error) = closed {
        tracing::debug!(%error, "the account of a job that is over stays until it expires");
    }
}

/// The service that the job brings, once it is needed.
fn own_service(job: &BatchJob, phase: &Phase) -> Option<InferenceService> {
    match phase {
        Phase::Planning(_) | Phase::Running | Phase::LeasesAway => build::own_service(job),
        _ => None,
    }
}

/// Tells the workers of the job's service. A lease store that is away is told with a later visit.
async fn tell(
    ctx: &Context,
    job: &BatchJob,
    seen: &Seen,
    workers: Workers,
) -> Result<(), VisitError> {
    let (of_job, is_missing) = (ctx.of_job(job), seen.service.is_none());
    // Nothing is remembered of a service that is missing, so that each time would be another connection.
    if is_missing && of_job.was_withdrawn.is_set() {
        return Ok(());
    }
    let namespace = job.namespace().unwrap_or_default();
    let registry = ctx.registry(&namespace, &service_of(job))?;
    let told = match (workers, &seen.service) {
        (Workers::Work, Some(service)) => {
            let checked = Checked {
                service: service.as_ref().clone(),
                others: seen.others.iter().map(|it| it.as_ref().clone()).collect(),
            };
            let registered = RegisteredJob {
                priority: job.spec.priority,
                manifests: build::manifests(job, &checked, seen.standing.run),
                credentials: job.spec.credentials.as_ref().map(|it| it.name.clone()),
            };
            registry.put(&job.name_any(), &registered).await
        }
        (Workers::Work, None) | (Workers::Rest, _) => registry.remove(&job.name_any()).await,
    };
    let is_told = unless_away(told)?.is_some();
    of_job.was_withdrawn.set(is_missing && is_told);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;
    use kube::{Client, Config};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};

    use super::super::decide_tests::{job, seen};
    use super::super::observe::Step;
    use super::*;
    use crate::config::Options;
    use crate::objects::Objects;

    /// Answers 0 to every command of a connection to Redis, and counts the scripts among them.
    async fn answer(mut stream: TcpStream, scripts: Arc<AtomicUsize>) {
        let mut read = [0; 4096];
        while let Ok(bytes @ 1..) = stream.read(&mut read).await {
            let commands = String::from_utf8_lossy(&read[..bytes]);
            scripts.fetch_add(commands.matches("EVALSHA").count(), Ordering::Relaxed);
            // Each command begins with the number of its words.
            let answers = ":0\r\n".repeat(commands.matches('*').count());
            stream.write_all(answers.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_workers_of_a_service_that_is_missing_are_told_once() {
        // Until it listens, whoever connects is refused.
        let redis = TcpSocket::new_v4().unwrap();
        redis.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("redis://{}", redis.local_addr().unwrap());
        let options = Options::of_tests(&[&format!("--redis-url={url}")]);
        let config = Config::new("http://127.0.0.1:1".parse().unwrap());
        let ctx = Context::new(Client::try_from(config).unwrap(), options).unwrap();
        let (job, mut jobs) = (job(false), Writer::default());
        jobs.apply_watcher_event(&Event::Apply(job.clone()));
        let objects = Objects {
            jobs: jobs.as_reader(),
            services: Writer::default().as_reader(),
        };
        ctx.objects.set(objects).unwrap();
        let seen = Seen {
            service: None,
            ..seen(Step::Absent, Step::Absent, None)
        };
        tell(&ctx, &job, &seen, Workers::Rest).await.unwrap();
        let is_withdrawn = ctx.of_job(&job).was_withdrawn.is_set();
        assert!(!is_withdrawn, "Redis was away");

        let listener = redis.listen(16).unwrap();
        let scripts = Arc::new(AtomicUsize::new(0));
        let counted = scripts.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, counted.clone()));
            }
        });
        for _ in 0..2 {
            tell(&ctx, &job, &seen, Workers::Rest).await.unwrap();
            assert_eq!(scripts.load(Ordering::Relaxed), 1);
        }
    }
}
