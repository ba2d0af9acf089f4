//! How the pods of a job or a service are found: their labels, and names that always fit.

use sha2::{Digest, Sha256};

use crate::BatchJob;
use crate::batch_job::JobService;

/// Longest name that every kind of object takes.
const NAME_CHARS_MAX: usize = 63;

/// Characters of a hash in a name that was cut.
const HASH_CHARS: usize = 10;

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

/// The InferenceService that works for a job: the one it names, or its own.
pub fn service_of(job: &BatchJob) -> String {
    match job.spec.service() {
        JobService::Shared(named) => named.to_owned(),
        JobService::Own(_) => {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            child(name, "service")
        }
    }
}

/// A value that a label takes: the name itself, or its cut and hashed form.
pub fn label_value(name: &str) -> String {
    if name.len() <= NAME_CHARS_MAX {
        return name.to_owned();
    }
    child(name, "x")
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
