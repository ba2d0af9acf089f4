//! Brings about what was decided.

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use millrace_crds::BatchJob;
use millrace_protocol::registry::RegisteredJob;

use super::build;
use super::decide::{Decision, Phase, Workers};
use super::observe::{Seen, run_key};
use crate::apply::{apply as apply_child, delete};
use crate::context::Context;
use crate::names::child;
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
    if *phase == Phase::Over {
        return Ok(Applied);
    }
    let namespace = job.namespace().unwrap_or_default();
    if let Some(step) = unmake {
        let name = child(&job.name_any(), step);
        delete::<Job>(&ctx.client, &namespace, &name)
            .await
            .map_err(VisitError::Apply)?;
    }
    if let Some(made) = make {
        let manifests = build::manifests(job, &made.checked.service);
        let config_map = build::config_map(job, &manifests);
        let step = build::step(job, made, &ctx.options);
        // A step that is there counts as made, so what its pod mounts must be there before it.
        apply_child(&ctx.client, &namespace, config_map)
            .await
            .map_err(VisitError::Apply)?;
        apply_child(&ctx.client, &namespace, step)
            .await
            .map_err(VisitError::Apply)?;
    }
    tell(ctx, job, seen, *workers).await?;
    if matches!(phase, Phase::Finished(_) | Phase::Failed { .. }) {
        ctx.close(&run_key(job));
    }
    Ok(Applied)
}

/// Tells the workers of the job's service. A lease store that is away is told with a later visit.
async fn tell(
    ctx: &Context,
    job: &BatchJob,
    seen: &Seen,
    workers: Workers,
) -> Result<(), VisitError> {
    let namespace = job.namespace().unwrap_or_default();
    let registry = ctx.registry(&namespace, &job.spec.service_ref.name)?;
    let told = match (workers, &seen.service) {
        (Workers::Work, Some(service)) => {
            let registered = RegisteredJob {
                priority: job.spec.priority,
                manifests: build::manifests(job, service),
                credentials: job.spec.credentials.as_ref().map(|it| it.name.clone()),
            };
            registry.put(&job.name_any(), &registered).await
        }
        (Workers::Work, None) | (Workers::Rest, _) => registry.remove(&job.name_any()).await,
    };
    match told {
        Err(error) if !error.is_unavailable() => Err(error.into()),
        _ => Ok(()),
    }
}
