//! Names and labels of what the operator makes.

use std::collections::BTreeMap;

use kube::ResourceExt;
use millrace_crds::BatchJob;
use millrace_crds::batch_job::JobService;
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use sha2::{Digest, Sha256};

/// Longest name that every kind of object takes.
const NAME_CHARS_MAX: usize = 63;

/// Characters of a hash in a name that was cut.
const HASH_CHARS: usize = 10;

/// Who applies, in server-side apply.
pub const FIELD_MANAGER: &str = "millrace-operator";

/// Label that holds the name of the InferenceService of a pod.
pub const SERVICE_LABEL: &str = "millrace.dev/inference-service";

/// Label that holds the name of the BatchJob of a pod.
pub const JOB_LABEL: &str = "millrace.dev/batch-job";

/// `<owner>-<suffix>`, cut and hashed where it would be too long. The same owner always gives the
/// same name, and two owners never share one.
pub fn child(owner: &str, suffix: &str) -> String {
    let whole = format!("{owner}-{suffix}");
    if whole.len() <= NAME_CHARS_MAX && !owner.contains('.') {
        return whole;
    }
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(owner));
    let room = NAME_CHARS_MAX - HASH_CHARS - suffix.len() - 2;
    // A dot is fine in the owner's name and in no name of a Service.
    let start: String = owner.replace('.', "-").chars().take(room).collect();
    let start = start.trim_end_matches('-');
    format!("{start}-{}-{suffix}", &hash[..HASH_CHARS])
}

/// The Secret from which pods of a service, and of its jobs, learn where the leases are.
pub fn leases_secret(service: &str) -> String {
    child(service, "leases")
}

/// The InferenceService that works for a job: the one it names, or its own.
pub fn service_of(job: &BatchJob) -> String {
    match job.spec.service() {
        JobService::Shared(named) => named.to_owned(),
        JobService::Own(_) => child(&job.name_any(), "service"),
    }
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

/// A value that a label takes: the name itself, or its cut and hashed form.
pub fn label_value(name: &str) -> String {
    if name.len() <= NAME_CHARS_MAX {
        return name.to_owned();
    }
    child(name, "x")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_children_are_short_and_their_owners_own() {
        assert_eq!(child("embed", "plan"), "embed-plan");
        let long = "a".repeat(253);
        let other = format!("{}b", "a".repeat(252));
        assert_eq!(child(&long, "finish").len(), 63);
        assert_ne!(child(&long, "finish"), child(&other, "finish"));
        assert!(!child("a.b", "plan").contains('.'));
        assert_ne!(child("a.b", "plan"), child("a-b", "plan"));
        assert!(label_value(&long).len() <= 63);
    }
}
