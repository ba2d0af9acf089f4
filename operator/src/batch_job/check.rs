//! Whether a job can be worked on at all, beyond what its schema says. Pure.

use millrace_crds::{BatchJob, InferenceService};

use super::build;
use super::observe::Seen;
use crate::names;
use crate::visit::REJECTED;

/// A job that fits its service.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The service.
    pub service: InferenceService,
}

/// Why a job is not worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One word.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Refused {
    /// The API server will not have a child as it is.
    pub fn rejected(why: &str) -> Self {
        Self {
            reason: REJECTED,
            message: why.to_owned(),
        }
    }
}

/// Checks the job against what was seen.
pub fn check(job: &BatchJob, seen: &Seen) -> Result<Checked, Refused> {
    let refused = |reason, message| Err(Refused { reason, message });
    let spec = &job.spec;
    let own = build::own_service(job);
    let Some(service) = own.as_ref().or(seen.service.as_deref()) else {
        let named = names::service_of(job);
        let message = format!(
            "spec.serviceRef.name: there is no InferenceService {named:?} in this namespace; the job \
             begins once it is there"
        );
        return refused("ServiceNotFound", message);
    };
    for (index, step) in spec.steps.iter().flatten().enumerate() {
        let models = || service.spec.model_names();
        if !models().any(|model| model == step.model) {
            let known = models().collect::<Vec<_>>().join(", ");
            let message = format!(
                "spec.steps[{index}].model: the service has no model {:?}; it has {known}",
                step.model
            );
            return refused("UnknownModel", message);
        }
    }
    if let Some(field) = job.local_paths().first() {
        // A file would be one of the worker's own pod, such as a Secret that is mounted there.
        let message =
            format!("{field} is a path of one machine; in a cluster write s3://bucket/path");
        return refused("LocalPath", message);
    }
    if let Some(secret) = &spec.credentials
        && !service.spec.secrets.contains(secret)
    {
        let message = format!(
            "spec.credentials: list {:?} in spec.secrets of InferenceService {:?}, whose workers read \
             and write for this job",
            secret.name,
            names::service_of(job)
        );
        return refused("SecretNotShared", message);
    }
    if spec.budget.is_some() && service.spec.pricing().is_none() {
        let message = format!(
            "spec.budget.maxCost: InferenceService {:?} names no prices; give it spec.remote.pricing, or \
             remove the budget",
            names::service_of(job)
        );
        return refused("NoPricing", message);
    }
    Ok(Checked {
        service: service.clone(),
    })
}
