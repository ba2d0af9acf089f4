//! Whether and how a job ended. Pure.

use std::process::ExitCode;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use millrace_crds::BatchJob;

use crate::exit;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Every row ended as a result or as a reported error.
    Completed,
    /// Some shards were given up.
    ShardsFailed,
    /// It failed, was cancelled or went past its deadline.
    Failed,
}

impl End {
    /// The exit code of a command that watched the job to this end.
    pub fn exit_code(self) -> ExitCode {
        match self {
            End::Completed => ExitCode::SUCCESS,
            End::ShardsFailed => exit::FAILED_SHARDS.into(),
            End::Failed => ExitCode::FAILURE,
        }
    }

    /// Whether a manifest was written, so that failed rows and shards are known and can be run again.
    pub fn is_finished(self) -> bool {
        match self {
            End::Completed | End::ShardsFailed => true,
            End::Failed => false,
        }
    }
}

/// What the job's `Succeeded` says. Absent before an operator looked at the job.
pub fn succeeded(job: &BatchJob) -> Option<&Condition> {
    let status = job.status.as_ref()?;
    status.conditions.iter().find(|it| it.type_ == "Succeeded")
}

/// How the job ended, if it did.
pub fn end(job: &BatchJob) -> Option<End> {
    let Condition { status, reason, .. } = succeeded(job)?;
    match (status.as_str(), reason.as_str()) {
        ("True", _) => Some(End::Completed),
        // Its workers still give their shards back.
        (_, "Cancelling") => None,
        ("False", "ShardsFailed") => Some(End::ShardsFailed),
        ("False", _) => Some(End::Failed),
        _ => None,
    }
}

/// Whether the status speaks of the job as it is now, and not of an earlier spec.
pub fn is_of_this_spec(job: &BatchJob) -> bool {
    let seen = job.status.as_ref().and_then(|it| it.observed_generation);
    seen >= job.metadata.generation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::show::testing::job;

    fn ended(status: &str, reason: &str) -> Option<End> {
        end(&job(status, reason))
    }

    #[test]
    fn a_job_is_over_when_succeeded_is_no_longer_unknown() {
        assert_eq!(ended("True", "Completed"), Some(End::Completed));
        assert_eq!(ended("False", "ShardsFailed"), Some(End::ShardsFailed));
        for reason in [
            "PlanFailed",
            "FinishFailed",
            "Cancelled",
            "DeadlineExceeded",
        ] {
            assert_eq!(ended("False", reason), Some(End::Failed), "{reason}");
        }
        for reason in ["Planning", "Running", "Suspended", "Cancelling"] {
            assert_eq!(ended("Unknown", reason), None, "{reason}");
        }
        assert_eq!(ended("False", "Cancelling"), None);
        let mut unseen = job("True", "Completed");
        unseen.status = None;
        assert_eq!(end(&unseen), None);
    }

    #[test]
    fn the_exit_code_tells_completed_from_given_up_from_failed() {
        let code = |end: End| format!("{:?}", end.exit_code());
        assert_eq!(code(End::Completed), format!("{:?}", ExitCode::from(0)));
        assert_eq!(code(End::Failed), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(End::ShardsFailed), format!("{:?}", ExitCode::from(3)));
    }

    #[test]
    fn a_status_of_an_earlier_spec_is_told_from_one_of_this() {
        let mut job = job("True", "Completed");
        job.metadata.generation = Some(2);
        let status = job.status.as_mut().unwrap();
        status.observed_generation = Some(1);
        assert!(!is_of_this_spec(&job));
        job.status.as_mut().unwrap().observed_generation = Some(2);
        assert!(is_of_this_spec(&job));
    }
}
