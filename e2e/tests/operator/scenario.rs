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
}

impl Scenario {
    /// Does what the users do, up to the end.
    pub async fn play(self, tenant: &Tenant) {
        match self {
            Scenario::Plain => {
                tenant.create_service(SERVICE, json!({})).await;
                tenant.create_job(JOB, SERVICE, json!({})).await;
            }
            Scenario::Suspended => {
                tenant.world.pause_after(1);
                tenant.create_service(SERVICE, json!({})).await;
                tenant.create_job(JOB, SERVICE, json!({})).await;
                tenant.wait_for_commits(1).await;
                tenant.suspend(JOB, true).await;
                tenant.wait_for_reason(JOB, "Suspended").await;
                tenant.world.go_on();
                tenant.suspend(JOB, false).await;
            }
        }
        tenant.wait_for_reason(JOB, "Completed").await;
        tenant.wait_for_readiness(SERVICE, "Asleep").await;
    }
}
