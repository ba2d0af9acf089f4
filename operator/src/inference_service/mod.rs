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
use kube::runtime::reflector::Store;
use millrace_crds::{BatchJob, InferenceService};

use crate::context::Context;

/// Pause after a visit that failed.
const RETRY: Duration = Duration::from_secs(5);

/// How often a service is visited whose pods are not all up.
const STARTING: Duration = Duration::from_secs(5);

/// Pause after a visit to an object that had been changed meanwhile.
const STALE: Duration = Duration::from_millis(200);

/// Why a visit failed. The next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// What is there could not be read.
    #[error("the service could not be observed")]
    Observe(#[source] kube::Error),
    /// The lease store refuses the operator.
    #[error("the lease store cannot be used")]
    Leases(#[from] millrace_leases::LeaseError),
    /// What should be there could not be made.
    #[error("the service's objects could not be applied")]
    Apply(#[source] kube::Error),
    /// The status could not be written.
    #[error("the service's status could not be written")]
    Report(#[source] kube::Error),
}

/// What visits to services need: the jobs too, whose backlog decides how many pods there are.
pub struct ServiceContext {
    /// What every visit needs.
    pub base: Arc<Context>,
    /// All jobs.
    pub jobs: Store<BatchJob>,
}

/// Visits a service.
pub async fn visit(
    service: Arc<InferenceService>,
    ctx: Arc<ServiceContext>,
) -> Result<Action, VisitError> {
    let seen = observe::observe(&ctx, &service).await?;
    let checked = check::check(&service);
    let scale = scale::decide(&service, &seen, ctx.base.now());
    let applied = apply::apply(&ctx.base, &service, checked, &seen, &scale).await?;
    let is_up = report::report(&ctx.base, &service, &seen, &scale, applied).await?;
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

/// Whether the visit looked at an object that had been changed: the next one sees the change.
fn is_stale(error: &VisitError) -> bool {
    matches!(error, VisitError::Report(kube::Error::Api(status)) if status.code == 409)
}

/// What to do after a visit that failed.
pub fn after_error(
    service: Arc<InferenceService>,
    error: &VisitError,
    _ctx: Arc<ServiceContext>,
) -> Action {
    if is_stale(error) {
        return Action::requeue(STALE);
    }
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    tracing::warn!(
        namespace,
        name,
        error = error as &dyn std::error::Error,
        "a visit failed"
    );
    Action::requeue(RETRY)
}
