//! What visits to both kinds share: why they fail, and what comes after.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

/// Pause after a visit that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Pause after a visit to an object that had been changed meanwhile.
const STALE: Duration = Duration::from_millis(200);

/// Reason of an object whose children the API server will not have.
pub const REJECTED: &str = "Rejected";

/// Why a visit failed. The next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// What is there could not be read.
    #[error("what is there could not be observed")]
    Observe(#[source] kube::Error),
    /// The lease store refuses the operator.
    #[error("the lease store cannot be used")]
    Leases(#[from] millrace_leases::LeaseError),
    /// What should be there could not be made.
    #[error("what should be there could not be applied")]
    Apply(#[source] kube::Error),
    /// The status could not be written.
    #[error("the status could not be written")]
    Report(#[source] kube::Error),
}

impl VisitError {
    /// Why the API server will not have a child as it is: a quota, a policy, a value that is none.
    /// Only a person can mend that, so it belongs into the status.
    pub fn rejection(&self) -> Option<&str> {
        match self {
            VisitError::Apply(kube::Error::Api(status))
                if [400, 403, 422].contains(&status.code) =>
            {
                Some(&status.message)
            }
            _ => None,
        }
    }

    /// Whether the visit looked at an object that had been changed: the next one sees the change.
    fn is_stale(&self) -> bool {
        matches!(self, VisitError::Report(kube::Error::Api(status)) if status.code == 409)
    }
}

/// What to do after a visit that failed.
pub fn after_error<K, C>(object: Arc<K>, error: &VisitError, _ctx: Arc<C>) -> Action
where
    K: Resource<DynamicType = ()>,
{
    if error.is_stale() {
        return Action::requeue(STALE);
    }
    let kind = K::kind(&());
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let error = error as &dyn std::error::Error;
    tracing::warn!(%kind, namespace, name, error, "a visit failed");
    Action::requeue(RETRY)
}
