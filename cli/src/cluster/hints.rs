//! What to do about each known reason. Pure.

use millrace_crds::BatchJob;
use millrace_crds::batch_job::RAISED_BUDGET;

use super::end::{end, succeeded};
use super::jobs::output_of;
use crate::invocation::Invocation;
use millrace_crds::names::service_of;

/// What to do about the state a job is in, where a person has something to do.
pub fn for_job(job: &BatchJob, invocation: &Invocation) -> Option<String> {
    if let Some(manager) = job.other_manager() {
        return Some(format!(
            "spec.managedBy leaves this job to {manager}: see there, or create it anew without that field"
        ));
    }
    let Some(condition) = succeeded(job) else {
        return Some(format!(
            "no operator has looked at this job yet; `{}` says why",
            invocation.command("check")
        ));
    };
    let reason = condition.reason.as_str();
    to_begin(job, reason)
        .or_else(|| to_go_on(job, reason, invocation))
        .or_else(|| after_end(job, reason, invocation))
}

/// What to do about a job that does not begin.
fn to_begin(job: &BatchJob, reason: &str) -> Option<String> {
    let service = service_of(job);
    let hint = match reason {
        "ServiceNotFound" if job.spec.routes.is_some() => {
            "create the InferenceService that the message names in the job's namespace; the job begins \
             by itself"
                .to_owned()
        }
        "ServiceNotFound" => format!(
            "create InferenceService {service:?} in the job's namespace; the job begins by itself"
        ),
        "UnknownModel" => format!(
            "add the model to InferenceService {service:?}, and the job begins by itself; or correct \
             spec.steps and create the job anew"
        ),
        "LocalPath" => {
            "write s3://bucket/path in the field that the message names, and create the job anew"
                .to_owned()
        }
        "SecretNotShared" => format!(
            "list the Secret in spec.secrets of InferenceService {service:?}; the job begins by itself"
        ),
        "RouteNotRemote" => {
            "create the job anew with the service that the message names in the first route, or with \
             services with spec.remote in all others"
                .to_owned()
        }
        "Rejected" => "raise the quota, or correct the policy or the field, that the message names; the \
             job begins by itself"
            .to_owned(),
        "NoPricing" => format!(
            "give InferenceService {service:?} spec.remote.pricing, and the job begins by itself; or \
             remove spec.budget"
        ),
        _ => return None,
    };
    Some(hint)
}

/// What to do about a job that rests.
fn to_go_on(job: &BatchJob, reason: &str, invocation: &Invocation) -> Option<String> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    match reason {
        "LeasesUnavailable" => Some(format!(
            "bring the Redis of the leases back, and the job goes on; `{}` looks at it",
            invocation.command("check")
        )),
        "Suspended" => {
            let resume = invocation.command(&format!("resume {name}"));
            Some(format!("`{resume}` lets it go on"))
        }
        _ => None,
    }
}

/// What to do about a job that came to another end than it was to.
fn after_end(job: &BatchJob, reason: &str, invocation: &Invocation) -> Option<String> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let output = output_of(job).trim_end_matches('/');
    let command = |words: String| format!("`{}`", invocation.command(&words));
    let hint = match reason {
        "ShardsFailed" => format!(
            "failedShards in {output}/manifest.json says why; once that is mended, {} runs the failed \
             rows and shards again",
            command(format!("retry {name} --failed-only"))
        ),
        "PlanFailed" => format!(
            "{} shows more; correct what the message names and create the job anew",
            command(format!("logs {name} --step plan"))
        ),
        "FinishFailed" => format!(
            "{} shows more; correct what the message names and create the job anew: it goes on from \
             what is committed",
            command(format!("logs {name} --step finish"))
        ),
        "Cancelled" => {
            "what is committed stays; a job with the same input and output goes on from \
             there"
                .to_owned()
        }
        "DeadlineExceeded" => {
            "what is committed stays; a job with the same input and output, and a \
             later spec.activeDeadlineSeconds, goes on from there"
                .to_owned()
        }
        "BudgetSpent" => {
            let patch = format!("patch batchjob {name} --type merge -p '{RAISED_BUDGET}'");
            format!(
                "what is committed stays, and so do the answers that are paid; with more than was spent as \
                 AMOUNT, `{}` lets the job go on from there",
                invocation.kubectl(&patch)
            )
        }
        "TooManyFailedRows" => format!(
            "{} shows why; what is committed stays, and a job with the same input and output, and \
             another spec.maxFailedRows, goes on from there",
            command(format!("errors {name}"))
        ),
        "TooManyFailedIndexes" => format!(
            "failedShards in {output}/manifest.json says why; what is committed stays, and a job with \
             the same input and output, and another spec.maxFailedIndexes, goes on from there"
        ),
        _ => return None,
    };
    Some(hint)
}

/// What to do about a budget that may end a job before its time.
pub fn for_budget(job: &BatchJob) -> Option<String> {
    let estimate = job.status.as_ref()?.estimate.as_ref()?;
    let most = estimate.cost_most?;
    let max = job.spec.budget.as_ref()?.max_cost;
    if end(job).is_some() || max >= most {
        return None;
    }
    Some(format!(
        "spec.budget.maxCost is {max} and the job may cost up to {}: it stops there, and goes on once \
         the budget is raised",
        most.short()
    ))
}

/// What to do about a pod that is in this state.
pub fn for_pod(state: &str) -> Option<&'static str> {
    let hint = match state {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            "the image cannot be had: look at images.* of the chart's values, and at the pull secrets"
        }
        "CreateContainerConfigError" => {
            "a Secret or ConfigMap that the pod names is not there: the events name it"
        }
        "Unschedulable" => {
            "no node has room for the pod: look at spec.template of the InferenceService (resources, \
             nodeSelector, tolerations), and at the nodes"
        }
        "OOMKilled" => {
            "the container took more memory than it may: raise spec.template.resources.limits.memory \
             of the InferenceService"
        }
        "CrashLoopBackOff"
        | "RunContainerError"
        | "Error"
        | "Init:CrashLoopBackOff"
        | "Init:Error" => "a container ends again and again: its last lines say why, see the logs",
        _ => return None,
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::show::testing::job;

    #[test]
    fn every_bad_reason_of_a_job_has_a_hint() {
        let bad = [
            "ServiceNotFound",
            "UnknownModel",
            "LocalPath",
            "SecretNotShared",
            "RouteNotRemote",
            "Rejected",
            "LeasesUnavailable",
            "Suspended",
            "ShardsFailed",
            "PlanFailed",
            "FinishFailed",
            "Cancelled",
            "DeadlineExceeded",
            "TooManyFailedRows",
            "TooManyFailedIndexes",
            "NoPricing",
            "BudgetSpent",
        ];
        for reason in bad {
            let job = job("False", reason);
            assert!(for_job(&job, &Invocation::new()).is_some(), "{reason}");
        }
        for reason in [
            "Planning",
            "Running",
            "Finishing",
            "Completed",
            "Cancelling",
        ] {
            let job = job("Unknown", reason);
            assert_eq!(for_job(&job, &Invocation::new()), None, "{reason}");
        }
    }

    #[test]
    fn a_hint_names_the_objects_and_commands_of_this_job() {
        let invocation = Invocation::with_flags("-n tenant".to_owned());
        let hint = |reason| for_job(&job("False", reason), &invocation).unwrap();
        assert!(hint("ServiceNotFound").contains("\"minilm\""));
        assert!(hint("Suspended").contains("`millrace resume embed -n tenant`"));
        assert!(hint("ShardsFailed").contains("s3://bucket/embed/manifest.json"));
        let raised = hint("BudgetSpent");
        let patch = "`kubectl patch batchjob embed --type merge -p \
             '{\"spec\":{\"budget\":{\"maxCost\":\"AMOUNT\"}}}' -n tenant`";
        assert!(raised.contains(patch), "{raised}");
    }

    #[test]
    fn a_job_that_no_operator_saw_leads_to_the_check() {
        let mut job = job("Unknown", "Planning");
        job.status = None;
        let hint = for_job(&job, &Invocation::new()).unwrap();
        assert!(hint.contains("`millrace check`"), "{hint}");
    }

    #[test]
    fn a_pod_that_runs_needs_no_hint() {
        assert_eq!(for_pod("Running"), None);
        assert!(for_pod("Unschedulable").is_some());
    }
}
