//! What visits to both kinds share: why they fail, what comes after, and how they are counted and
//! traced.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use millrace_telemetry::{KeyValue, PastSpan, RunTrace};

use crate::metrics::VisitMetrics;

/// Pause after a visit that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Pause after a visit to an object that had been changed meanwhile.
const STALE: Duration = Duration::from_millis(200);

tokio::task_local! {
    /// What the visit in hand changed so far.
    static CHANGES: RefCell<Vec<String>>;
}

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

    /// What is counted.
    fn outcome(&self) -> &'static str {
        match self {
            error if error.is_stale() => "stale",
            VisitError::Observe(_) => "observe",
            VisitError::Leases(_) => "leases",
            VisitError::Apply(_) => "apply",
            VisitError::Report(_) => "report",
        }
    }
}

/// Notes that the visit in hand changed an object of kind `K`.
pub fn note_change<K>(name: &str)
where
    K: Resource<DynamicType = ()>,
{
    let change = format!("{} {name}", K::kind(&()));
    // Outside of a visit nobody asks.
    let _ = CHANGES.try_with(|changes| changes.borrow_mut().push(change));
}

/// Makes a visit that is counted and, if it changed something, traced: most visits find everything
/// as it should be. `run` is the trace that it belongs to, if it belongs to one.
pub async fn watched<K>(
    object: &K,
    run: Option<RunTrace>,
    metrics: &VisitMetrics,
    visit: impl Future<Output = Result<Action, VisitError>>,
) -> Result<Action, VisitError>
where
    K: Resource<DynamicType = ()>,
{
    let kind = K::kind(&());
    let (started, began) = (SystemTime::now(), Instant::now());
    let noting = async {
        let done = visit.await;
        (done, CHANGES.with(RefCell::take))
    };
    let (done, changes) = CHANGES.scope(RefCell::default(), noting).await;
    let took = began.elapsed();
    let outcome = done.as_ref().map_or_else(VisitError::outcome, |_| "done");
    metrics.note(&kind, outcome, took);
    if changes.is_empty() {
        return done;
    }
    let past = || PastSpan {
        name: "visit",
        started,
        ended: started + took,
        attributes: vec![
            KeyValue::new("millrace.kind", kind.clone().into_owned()),
            KeyValue::new("millrace.namespace", object.namespace().unwrap_or_default()),
            KeyValue::new("millrace.name", object.name_any()),
            KeyValue::new("millrace.changed", changes.join(", ")),
        ],
        error: done.as_ref().err().map(|error| error.to_string()),
    };
    match run {
        Some(run) => run.write(past),
        None => PastSpan::write_alone(past),
    }
    done
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    async fn outcome(visit: Result<Action, VisitError>) -> String {
        let metrics = VisitMetrics::default();
        let object = ConfigMap::default();
        let visit = async {
            note_change::<ConfigMap>("child");
            visit
        };
        let _ = watched(&object, None, &metrics, visit).await;
        let now = crate::metrics::Now {
            leads: true,
            leases_available: true,
            objects: None,
        };
        let text = crate::metrics::render(&metrics, now);
        let counted = text.lines().find_map(|line| {
            let labels = line.strip_prefix("millrace_operator_visits_total{kind=\"ConfigMap\",")?;
            labels.strip_suffix("} 1")
        });
        counted.expect("the visit is counted").to_owned()
    }

    #[tokio::test]
    async fn a_visit_is_counted_by_how_it_ended() {
        let conflict: kube::core::Status =
            serde_json::from_value(serde_json::json!({"code": 409})).unwrap();
        let stale = VisitError::Report(kube::Error::Api(Box::new(conflict)));
        let apply = VisitError::Apply(kube::Error::LinesCodecMaxLineLengthExceeded);
        assert_eq!(
            outcome(Ok(Action::await_change())).await,
            "outcome=\"done\""
        );
        assert_eq!(outcome(Err(stale)).await, "outcome=\"stale\"");
        assert_eq!(outcome(Err(apply)).await, "outcome=\"apply\"");
    }
}
