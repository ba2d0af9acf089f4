//! The changes that a person makes to a job that is there: what to patch and what to say, decided
//! from the job as it is. Pure.

use millrace_crds::BatchJob;
use serde_json::{Value, json};

use super::end::{End, end, succeeded};
use super::jobs::output_of;
use crate::invocation::Invocation;

/// What a person wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It rests.
    Suspend,
    /// It goes on.
    Resume,
    /// It ends.
    Cancel,
    /// Its failed rows and shards are run again.
    RetryFailed,
}

/// What comes of a wish.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is so already.
    Already(String),
    /// It cannot be; with what to do instead.
    Refused(String),
    /// It takes a patch; with what to say once that is done.
    Patch {
        /// The patch.
        patch: Value,
        /// What happens next.
        said: String,
    },
}

/// Decides.
pub fn decide(wish: Wish, job: &BatchJob, invocation: &Invocation) -> Change {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let reason = succeeded(job).map_or("", |it| it.reason.as_str());
    let over = end(job);
    let command = |words: &str| invocation.command(&format!("{words} {name}"));
    match wish {
        Wish::Suspend if job.spec.suspend => {
            Change::Already(format!("batchjob/{name} is suspended already"))
        }
        Wish::Resume if !job.spec.suspend => {
            Change::Already(format!("batchjob/{name} is not suspended"))
        }
        Wish::Cancel if job.spec.cancel => Change::Already(match over {
            Some(_) => format!("batchjob/{name} is cancelled already"),
            None => format!("batchjob/{name} is being cancelled already"),
        }),
        Wish::Suspend | Wish::Resume | Wish::Cancel if over.is_some() => Change::Refused(format!(
            "batchjob/{name} is over ({reason}): there is nothing to {}",
            wish.word()
        )),
        Wish::Suspend => patch(
            json!({"spec": {"suspend": true}}),
            format!(
                "batchjob/{name} suspended: its workers give their shards back, and what is done \
                 stays; `{}` lets it go on",
                command("resume")
            ),
        ),
        Wish::Resume => patch(
            json!({"spec": {"suspend": false}}),
            format!(
                "batchjob/{name} resumed: it goes on where it was; `{} --watch` follows it",
                command("status")
            ),
        ),
        Wish::Cancel => patch(
            json!({"spec": {"cancel": true}}),
            format!(
                "batchjob/{name} cancelled: its workers give their shards back, and what is \
                 committed stays in {}; it cannot be undone",
                output_of(job)
            ),
        ),
        Wish::RetryFailed => retry(job, over, invocation),
    }
}

impl Wish {
    fn word(self) -> &'static str {
        match self {
            Wish::Suspend => "suspend",
            Wish::Resume => "resume",
            Wish::Cancel => "cancel",
            Wish::RetryFailed => "retry",
        }
    }

    /// Whether the job, as it came back from the patch, holds what was patched: an API server whose
    /// CRDs do not know a field drops it without a word.
    pub fn is_met(self, before: &BatchJob, after: &BatchJob) -> bool {
        match self {
            Wish::Suspend => after.spec.suspend,
            Wish::Resume => !after.spec.suspend,
            Wish::Cancel => after.spec.cancel,
            Wish::RetryFailed => after.spec.rerun_failed > before.spec.rerun_failed,
        }
    }
}

fn patch(patch: Value, said: String) -> Change {
    Change::Patch { patch, said }
}

fn retry(job: &BatchJob, over: Option<End>, invocation: &Invocation) -> Change {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let reason = succeeded(job).map_or("", |it| it.reason.as_str());
    let command = |words: String| invocation.command(&words);
    let Some(end) = over else {
        return Change::Refused(format!(
            "batchjob/{name} is not over: its failed rows can be run again once it is; `{}` waits for \
             that",
            command(format!("status {name} --watch"))
        ));
    };
    if !end.is_finished() {
        return Change::Refused(format!(
            "batchjob/{name} ended as {reason}, before its failed rows were known; `{}` says what to do",
            command(format!("status {name}"))
        ));
    }
    let status = job.status.clone().unwrap_or_default();
    let rows = status.rows.map_or(0, |rows| rows.failed);
    let shards = status.shards.map_or(0, |shards| shards.failed);
    if rows == 0 && shards == 0 {
        return Change::Refused(format!(
            "batchjob/{name}: no row and no shard failed, so there is nothing to run again"
        ));
    }
    patch(
        // Two that raise it at a time must not count as one, so the second is refused.
        json!({
            "metadata": {"resourceVersion": job.metadata.resource_version},
            "spec": {"rerunFailed": job.spec.rerun_failed + 1},
        }),
        format!(
            "batchjob/{name}: {rows} failed rows and {shards} failed shards are run again; `{}` \
             follows it",
            command(format!("status {name} --watch"))
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::show::testing;

    fn decided(wish: Wish, job: &BatchJob) -> Change {
        decide(wish, job, &Invocation::new())
    }

    fn patched(wish: Wish, job: &BatchJob) -> Value {
        match decided(wish, job) {
            Change::Patch { patch, .. } => patch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_wish_patches_its_own_field_and_nothing_else() {
        let mut job = testing::job("Unknown", "Running");
        assert_eq!(
            patched(Wish::Suspend, &job),
            json!({"spec": {"suspend": true}})
        );
        assert_eq!(
            patched(Wish::Cancel, &job),
            json!({"spec": {"cancel": true}})
        );
        job.spec.suspend = true;
        assert_eq!(
            patched(Wish::Resume, &job),
            json!({"spec": {"suspend": false}})
        );
    }

    #[test]
    fn what_is_so_already_is_said_and_no_error() {
        let mut job = testing::job("Unknown", "Running");
        assert!(matches!(decided(Wish::Resume, &job), Change::Already(_)));
        job.spec.suspend = true;
        assert!(matches!(decided(Wish::Suspend, &job), Change::Already(_)));
        job.spec.cancel = true;
        let Change::Already(said) = decided(Wish::Cancel, &job) else {
            panic!("cancelled twice");
        };
        assert!(said.contains("is being cancelled"), "{said}");
    }

    #[test]
    fn a_job_that_is_over_can_neither_rest_nor_be_cancelled() {
        let job = testing::job("True", "Completed");
        for wish in [Wish::Suspend, Wish::Cancel] {
            let Change::Refused(said) = decided(wish, &job) else {
                panic!("{wish:?}");
            };
            assert!(said.contains("is over (Completed)"), "{said}");
        }
    }

    #[test]
    fn a_retry_raises_the_counter_by_one_against_the_version_that_was_seen() {
        let mut job = testing::job("False", "ShardsFailed");
        job.metadata.resource_version = Some("7".to_owned());
        job.spec.rerun_failed = 2;
        let expected = json!({"metadata": {"resourceVersion": "7"}, "spec": {"rerunFailed": 3}});
        assert_eq!(patched(Wish::RetryFailed, &job), expected);
    }

    #[test]
    fn a_retry_is_refused_while_the_job_goes_on_or_if_nothing_failed() {
        let refused = |job: &BatchJob| match decided(Wish::RetryFailed, job) {
            Change::Refused(said) => said,
            other => panic!("{other:?}"),
        };
        assert!(refused(&testing::job("Unknown", "Running")).contains("is not over"));
        assert!(refused(&testing::job("False", "PlanFailed")).contains("PlanFailed"));
        let mut clean = testing::job("True", "Completed");
        let status = clean.status.as_mut().unwrap();
        status.rows.as_mut().unwrap().failed = 0;
        status.shards.as_mut().unwrap().failed = 0;
        assert!(refused(&clean).contains("nothing to run again"));
    }

    #[test]
    fn a_field_that_the_api_server_dropped_is_noticed() {
        let job = testing::job("Unknown", "Running");
        assert!(!Wish::Cancel.is_met(&job, &job));
        let mut after = job.clone();
        after.spec.cancel = true;
        assert!(Wish::Cancel.is_met(&job, &after));
    }
}
