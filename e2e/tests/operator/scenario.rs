//! What users do, from an empty namespace to one in which nothing is left to be done.

use serde_json::json;

use crate::tenant::{JOB, SERVICE, Tenant};

/// A course of events. Whatever happens to the operator meanwhile, it must come to the same end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A job wakes a service, is worked off, and the service goes to sleep again.
    Plain,
    /// The same, with the job at rest in the middle.
    Suspended,
    /// The job is cancelled in the middle.
    Cancelled,
    /// The job is deleted in the middle.
    Deleted,
    /// The service's pods are replaced in the middle, since its template was changed.
    RolledOut,
}

impl Scenario {
    /// Does what the users do, up to the end.
    pub async fn play(self, tenant: &Tenant) {
        if self != Scenario::Plain {
            tenant.world.pause_after(1);
        }
        tenant.create_service(SERVICE, json!({})).await;
        tenant.create_job(JOB, SERVICE, json!({})).await;
        if self != Scenario::Plain {
            tenant.wait_for_commits(1).await;
        }
        match self {
            Scenario::Plain => {}
            Scenario::Suspended => {
                tenant.suspend(JOB, true).await;
                tenant.wait_for_reason(JOB, "Suspended").await;
                tenant.world.go_on();
                tenant.suspend(JOB, false).await;
            }
            Scenario::Cancelled => tenant.change_job(JOB, json!({"cancel": true})).await,
            Scenario::Deleted => {
                // Asleep as it was before, it would seem to be at its end already.
                tenant.wait_for_readiness(SERVICE, "Serving").await;
                tenant.delete_job(JOB).await;
            }
            Scenario::RolledOut => {
                tenant.move_pods(SERVICE, "fast").await;
                tenant.world.go_on();
            }
        }
        match self {
            Scenario::Deleted => {}
            Scenario::Cancelled => tenant.wait_for_reason(JOB, "Cancelled").await,
            _ => tenant.wait_for_reason(JOB, "Completed").await,
        }
        tenant.wait_for_readiness(SERVICE, "Asleep").await;
    }

    /// How many manifests are written in its course.
    pub fn manifests(self) -> usize {
        usize::from(self != Scenario::Deleted)
    }
}
