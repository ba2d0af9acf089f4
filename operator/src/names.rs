//! Names and labels of what the operator makes.

use std::collections::BTreeMap;

pub use millrace_crds::names::{JOB_LABEL, SERVICE_LABEL, child, label_value, service_of};
use millrace_protocol::plan::{FIRST_RUN, RunNumber};

/// Who applies, in server-side apply.
pub const FIELD_MANAGER: &str = "millrace-operator";

/// Who applies the number of pods that a service had when another autoscaler was to decide.
pub const REPLICAS_MANAGER: &str = "millrace-operator-replicas";

/// The Secret from which pods of a service, and of its jobs, learn where the leases are.
pub fn leases_secret(service: &str) -> String {
    child(service, "leases")
}

/// A step of one of the job's runs.
pub fn step(job: &str, step: &str, run: RunNumber) -> String {
    match run {
        FIRST_RUN => child(job, step),
        run => child(job, &format!("{step}-{run}")),
    }
}

/// What serves a service: its Deployment, its Service and what guards them.
pub fn inference(service: &str) -> String {
    child(service, "inference")
}

/// The labels of an object that belongs to `name` of a kind.
pub fn labels(component: &str, kind_label: &str, name: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "millrace".to_owned()),
        ("app.kubernetes.io/component", component.to_owned()),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER.to_owned()),
        (kind_label, label_value(name)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
