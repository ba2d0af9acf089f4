//! One visit to an InferenceService: observe → check → decide → apply → report.

mod answers;
mod apply;
mod build;
mod check;
mod observe;
mod report;
mod scale;

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use millrace_crds::InferenceService;

pub use self::build::key_secret;
use crate::context::Context;
use crate::visit::VisitError;

/// How often a service is visited whose pods are not all up, or whose workers are not told.
const STARTING: Duration = Duration::from_secs(5);

/// How often a service is visited whose jobs are at work.
const AT_WORK: Duration = Duration::from_secs(2);

/// How often the workers of a service that keeps answers are asked how many were known.
const ANSWERING: Duration = Duration::from_secs(60);

/// Visits a service.
pub async fn visit(
    service: Arc<InferenceService>,
    ctx: Arc<Context>,
) -> Result<Action, VisitError> {
    ctx.objects().synced().await;
    let seen = observe::observe(&ctx, &service).await?;
    let checked = check::check(&service);
    let scale = scale::decide(&service, &seen, ctx.now());
    let applied = apply::apply(&ctx, &service, checked, &seen, &scale).await?;
    let is_up = report::report(&ctx, &service, &seen, &scale, applied).await?;
    // What its pods wait for changes without an event of the Deployment, and so does what the workers
    // are told while the lease store is away.
    let is_told = seen.workers.is_some() && seen.gone.is_empty();
    let again_in = if is_up && is_told {
        scale.again_in
    } else {
        Some(STARTING)
    };
    // Jobs are remembered from another watch than the one whose event made this visit, and may be those
    // of a moment before: while they move, they are looked at again.
    let again_in = match again_in {
        pause if !seen.is_at_work => pause,
        Some(pause) => Some(pause.min(AT_WORK)),
        None => Some(AT_WORK),
    };
    // Requests come and go without an event.
    let is_answering = service.spec.cache.enabled && seen.has_workers();
    let again_in = match again_in {
        pause if !is_answering => pause,
        Some(pause) => Some(pause.min(ANSWERING)),
        None => Some(ANSWERING),
    };
    Ok(match again_in {
        Some(pause) => Action::requeue(pause),
        None => Action::await_change(),
    })
}
