//! One visit to a BatchJob: observe → check → decide → apply → report.

mod apply;
mod build;
mod check;
mod decide;
mod observe;
mod report;

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use millrace_crds::BatchJob;

use crate::context::Context;

/// Pause after a visit that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Pause after a visit to an object that had been changed meanwhile.
const STALE: Duration = Duration::from_millis(200);

/// Why a visit failed. The next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// What is there could not be read.
    #[error("the job could not be observed")]
    Observe(#[source] kube::Error),
    /// The lease store refuses the operator.
    #[error("the lease store cannot be used")]
    Leases(#[from] millrace_leases::LeaseError),
    /// What should be there could not be made.
    #[error("the job's objects could not be applied")]
    Apply(#[source] kube::Error),
    /// The status could not be written.
    #[error("the job's status could not be written")]
    Report(#[source] kube::Error),
}

/// Visits a job.
pub async fn visit(job: Arc<BatchJob>, ctx: Arc<Context>) -> Result<Action, VisitError> {
    let seen = observe::observe(&ctx, &job).await?;
    let checked = check::check(&job, &seen);
    let decision = decide::decide(&job, &checked, &seen);
    let applied = apply::apply(&ctx, &job, &seen, &decision).await?;
    report::report(&ctx, &job, &seen, &decision, applied).await?;
    Ok(match decision.again_in {
        Some(pause) => Action::requeue(pause),
        None => Action::await_change(),
    })
}

/// Whether the visit looked at an object that had been changed: the next one sees the change.
fn is_stale(error: &VisitError) -> bool {
    matches!(error, VisitError::Report(kube::Error::Api(status)) if status.code == 409)
}

/// What to do after a visit that failed.
pub fn after_error(job: Arc<BatchJob>, error: &VisitError, _ctx: Arc<Context>) -> Action {
    if is_stale(error) {
        return Action::requeue(STALE);
    }
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    tracing::warn!(
        namespace,
        name,
        error = error as &dyn std::error::Error,
        "a visit failed"
    );
    Action::requeue(RETRY)
}
