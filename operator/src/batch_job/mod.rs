//! One visit to a BatchJob: observe → check → decide → apply → report.

mod apply;
mod build;
mod check;
mod decide;
#[cfg(test)]
mod decide_tests;
pub mod meter;
mod notify;
mod observe;
pub mod progress;
mod reader;
mod report;
mod routes;
mod said;
pub mod standing;
pub mod trace;

use std::sync::Arc;
use std::time::Instant;

use kube::runtime::controller::Action;
use millrace_crds::BatchJob;

use self::apply::Applied;
pub use self::reader::ReaderTries;
use crate::context::Context;
use crate::visit::VisitError;

/// Visits a job. One that somebody else brings about is left alone.
pub async fn visit(job: Arc<BatchJob>, ctx: Arc<Context>) -> Result<Action, VisitError> {
    if job.other_manager().is_some() {
        return Ok(Action::await_change());
    }
    ctx.objects().synced().await;
    let seen = observe::observe(&ctx, &job).await?;
    let checked = check::check(&job, &seen);
    let mut decision = decide::decide(&job, &checked, &seen);
    // An end takes away what it was decided by, so it does not begin before it can be written.
    let is_end = decision.phase.is_end();
    if is_end && let Some(wait) = ctx.of_job(&job).status_wait(Instant::now()) {
        return Ok(Action::requeue(wait));
    }
    let applied = match apply::apply(&ctx, &job, &seen, &decision).await {
        Err(ref error) if let Some(why) = error.rejection() => {
            decision = decide::rejected(why);
            Applied
        }
        applied => applied?,
    };
    let later = report::report(&ctx, &job, &seen, &decision, applied).await?;
    let reader_again_in = match decision.phase {
        decide::Phase::Expired => None,
        _ => reader::keep(&ctx, &job, seen.service.as_deref()).await?,
    };
    let pauses = [later, decision.again_in, reader_again_in];
    Ok(match pauses.into_iter().flatten().min() {
        Some(pause) => Action::requeue(pause),
        None => Action::await_change(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Options;

    #[tokio::test]
    async fn a_job_that_somebody_else_brings_about_is_left_alone() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let options = Options::of_tests(&["--redis-url=redis://127.0.0.1:1"]);
        let client = kube::Client::try_from(config).unwrap();
        let ctx = Arc::new(Context::new(client, options).unwrap());
        let job: BatchJob = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "embed", "namespace": "tenant"},
            "spec": {
                "serviceRef": {"name": "minilm"}, "managedBy": "example.com/another",
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap();
        // Neither the API server nor Redis is there to be asked.
        let action = visit(Arc::new(job), ctx).await.unwrap();
        assert_eq!(action, Action::await_change());
    }
}
