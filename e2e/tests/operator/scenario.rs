//! What users do, from an empty namespace to one in which nothing is left to be done.

use serde_json::json;

use crate::tenant::{self, JOB, SERVICE, Tenant};

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
    /// The job brings its service, which goes with its end.
    OwnService,
    /// The job runs a second time once it is over.
    RunAgain,
    /// The job has no time left in the middle.
    Late,
}

impl Scenario {
    /// Does what the users do, up to the end.
    pub async fn play(self, tenant: &Tenant) {
        let is_straight = matches!(self, Scenario::Plain | Scenario::RunAgain);
        if !is_straight {
            tenant.world.pause_after(1);
        }
        match self {
            Scenario::OwnService => {
                let template = tenant::service(SERVICE, json!({}))["spec"].take();
                let own = json!({"serviceRef": null, "serviceTemplate": template});
                tenant.create_job(JOB, SERVICE, own).await;
            }
            _ => {
                tenant.create_service(SERVICE, json!({})).await;
                tenant.create_job(JOB, SERVICE, json!({})).await;
            }
        }
        if !is_straight {
            tenant.wait_for_commits(1).await;
        }
        match self {
            Scenario::Plain => {}
            Scenario::OwnService => tenant.world.go_on(),
            Scenario::RunAgain => {
                tenant.wait_for_reason(JOB, "Completed").await;
                tenant.change_job(JOB, json!({"rerunFailed": 1})).await;
            }
            Scenario::Suspended => {
                tenant.suspend(JOB, true).await;
                tenant.wait_for_reason(JOB, "Suspended").await;
                tenant.world.go_on();
                tenant.suspend(JOB, false).await;
            }
            Scenario::Cancelled => tenant.change_job(JOB, json!({"cancel": true})).await,
            Scenario::Late => {
                let deadline = json!({"activeDeadlineSeconds": 1});
                tenant.change_job(JOB, deadline).await;
            }
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
            Scenario::Late => tenant.wait_for_reason(JOB, "DeadlineExceeded").await,
            _ => tenant.wait_for_reason(JOB, "Completed").await,
        }
        if self != Scenario::OwnService {
            tenant.wait_for_readiness(SERVICE, "Asleep").await;
        }
    }

    /// How many manifests are written in its course.
    pub fn manifests(self) -> usize {
        match self {
            Scenario::Deleted => 0,
            Scenario::RunAgain => 2,
            _ => 1,
        }
    }
}
