//! One visit to an InferenceService: observe → check → decide → apply → report.

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

pub(crate) use self::observe::backlog;
use crate::context::Context;
use crate::visit::VisitError;

/// How often a service is visited whose pods are not all up.
const STARTING: Duration = Duration::from_secs(5);

/// Visits a service.
pub async fn visit(
    service: Arc<InferenceService>,
    ctx: Arc<Context>,
) -> Result<Action, VisitError> {
    ctx.synced().await;
    let seen = observe::observe(&ctx, &service).await?;
    let checked = check::check(&service);
    let scale = scale::decide(&service, &seen, ctx.now());
    let applied = apply::apply(&ctx, &service, checked, &seen, &scale).await?;
    let is_up = report::report(&ctx, &service, &seen, &scale, applied).await?;
    // What its pods wait for changes without an event of the Deployment.
    let again_in = if is_up {
        scale.again_in
    } else {
        Some(STARTING)
    };
    Ok(match again_in {
        Some(pause) => Action::requeue(pause),
        None => Action::await_change(),
    })
}
