//! Whether a job can be worked on at all, beyond what its schema says. Pure.

use kube::ResourceExt;
use millrace_crds::{BatchJob, InferenceService};

use super::observe::Seen;
use super::{build, routes};
use crate::names;
use crate::visit::REJECTED;

/// A job that fits its service.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The service; of several the first one, whose workers work for the job.
    pub service: InferenceService,
    /// The other services of a job with routes, in their order.
    pub others: Vec<InferenceService>,
}

/// Why a job is not worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One word.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
    /// Whether only a person can mend it; else it may pass by itself.
    pub is_permanent: bool,
}

impl Refused {
    /// Only a person can mend it.
    pub fn permanent(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            is_permanent: true,
        }
    }

    /// The API server will not have a child as it is.
    pub fn rejected(why: &str) -> Self {
        Self::permanent(REJECTED, why.to_owned())
    }

    /// A service is not there yet. It may come a moment later, out of the same release or commit.
    pub fn service_not_found(job: &BatchJob, named: &str) -> Self {
        let field = match job.spec.routes {
            Some(_) => "spec.routes",
            None => "spec.serviceRef.name",
        };
        Self {
            reason: "ServiceNotFound",
            message: format!(
                "{field}: there is no InferenceService {named:?} in this namespace; the job begins once \
                 it is there"
            ),
            is_permanent: false,
        }
    }
}

/// Checks the job against what was seen.
pub fn check(job: &BatchJob, seen: &Seen) -> Result<Checked, Refused> {
    let refused = |reason, message| Err(Refused::permanent(reason, message));
    let spec = &job.spec;
    let own = build::own_service(job);
    let Some(service) = own.as_ref().or(seen.service.as_deref()) else {
        let named = names::service_of(job);
        return Err(Refused::service_not_found(job, &named));
    };
    let others = routes::others(job, service, &seen.others)?;
    if let Some(message) = unknown_model(job, service, &others) {
        return refused("UnknownModel", message);
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
    let unpriced = [service].into_iter().chain(&others).find(|service| {
        // Of several services those with a server take no money.
        let takes_money = service.spec.remote.is_some() || spec.routes.is_none();
        takes_money && service.spec.pricing().is_none()
    });
    if let Some(unpriced) = unpriced
        && spec.budget.is_some()
    {
        let message = format!(
            "spec.budget.maxCost: InferenceService {:?} names no prices; give it spec.remote.pricing, or \
             remove the budget",
            unpriced.name_any()
        );
        return refused("NoPricing", message);
    }
    Ok(Checked {
        service: service.clone(),
        others,
    })
}

/// What is wrong where a step names a model that one of the job's services has not.
fn unknown_model(
    job: &BatchJob,
    service: &InferenceService,
    others: &[InferenceService],
) -> Option<String> {
    for (index, step) in job.spec.steps.iter().flatten().enumerate() {
        for service in [service].into_iter().chain(others) {
            let models = || service.spec.model_names();
            let Some(named) = &step.model else {
                continue;
            };
            if !models().any(|model| model == named) {
                let known = models().collect::<Vec<_>>().join(", ");
                return Some(format!(
                    "spec.steps[{index}].model: the service has no model {named:?}; it has {known}"
                ));
            }
        }
    }
    None
}
