//! The Job that tells whom a job names of an end that no finish step tells of. Pure.
//!
//! The operator says how the job ended, and a pod of the job's namespace sends it: no Secret is read
//! here, and nothing is sent from here. Nobody waits for that pod, and its fate is nothing to the job.

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use millrace_crds::BatchJob;
use millrace_crds::inference_service::PodTemplate;
use millrace_protocol::event::{Event, Over};
use millrace_protocol::plan::RunNumber;
use serde_json::json;

use super::build::{metadata, step_template};
use super::decide::Phase;
use super::standing::GiveUp;
use crate::apply::object;
use crate::config::Options;
use crate::names;
use crate::pods;

/// How often the pod is tried again; each time it tries for a while by itself.
const TRIES: u32 = 2;

/// Seconds after which nobody is told any more.
const DEADLINE_SECONDS: u32 = 600;

/// Seconds for which the Job is kept, for whoever looks for its log.
const KEPT_SECONDS: u32 = 3_600;

/// The Job, if the phase is such an end and the job names somebody. Its pod runs beside those of the
/// service that the template is of.
pub fn job(
    job: &BatchJob,
    run: RunNumber,
    phase: &Phase,
    template: &PodTemplate,
    options: &Options,
) -> Option<Job> {
    let notify = job.spec.notify.as_ref()?;
    let event = serde_json::to_string(&event(job, run, phase)?).expect("an event is plain data");
    let mut variables = vec![
        json!({"name": "MILLRACE_NOTIFY_URL", "value": notify.url}),
        json!({"name": "MILLRACE_NOTIFY_EVENT", "value": event}),
        json!({"name": "MILLRACE_SECRETS", "value": pods::SECRETS}),
    ];
    variables.extend(pods::store_variables(options));
    let (mut volumes, mut mounts) = (vec![], vec![]);
    if let Some(secret) = &notify.secret_ref {
        let (volume, mount) = pods::credentials(&secret.name);
        volumes.push(volume);
        mounts.push(mount);
        variables.push(json!({"name": "MILLRACE_NOTIFY_SECRET_NAME", "value": secret.name}));
        let key = secret.key.iter();
        variables
            .extend(key.map(|key| json!({"name": "MILLRACE_NOTIFY_SECRET_KEY", "value": key})));
    }
    let container = json!({
        "name": "notify",
        "image": options.worker_image,
        "imagePullPolicy": options.image_pull_policy,
        "args": ["notify"],
        "env": variables,
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    });
    Some(object(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, &names::step(&job.name_any(), "notify", run), "notify"),
        "spec": {
            "backoffLimit": TRIES,
            "podFailurePolicy": pods::failure_policy(),
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": step_template(job, "notify", template, &container, &volumes),
        },
    })))
}

/// What is told of an end without a manifest. It depends on nothing that another visit would see
/// otherwise, or the same end would be told in other words.
fn event(job: &BatchJob, run: RunNumber, phase: &Phase) -> Option<Event> {
    let (reason, message) = match phase {
        Phase::Failed { reason, message } => (*reason, message.clone()),
        Phase::GivenUp(give_up, None) => (give_up.reason(), before_plan(*give_up)),
        _ => return None,
    };
    let over = Over {
        namespace: job.namespace().unwrap_or_default(),
        name: job.name_any(),
        run,
        reason: reason.to_owned(),
        message,
        output: job.spec.output.uri.clone(),
        counts: None,
        postgres: None,
    };
    Some(Event::of(over, &job.uid().unwrap_or_default()))
}

fn before_plan(give_up: GiveUp) -> String {
    format!(
        "{}, before its plan was made: nothing was written",
        match give_up {
            GiveUp::Cancelled => "the job was cancelled",
            GiveUp::DeadlineExceeded => "spec.activeDeadlineSeconds were over",
            GiveUp::TooManyFailedRows => "more rows failed than spec.maxFailedRows allows",
            GiveUp::TooManyFailedIndexes => {
                "more shards were given up than spec.maxFailedIndexes allows"
            }
            GiveUp::BudgetSpent => "spec.budget.maxCost was spent",
        }
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn named() -> BatchJob {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job", "namespace": "tenant", "uid": "u"},
            "spec": {
                "serviceRef": {"name": "service"}, "input": {"uris": ["s3://bucket/in"]},
                "output": {"uri": "s3://bucket/out"},
                "notify": {"url": "https://example.com/hook", "secretRef": {"name": "hook"}},
            },
        }))
        .unwrap()
    }

    fn made(phase: &Phase) -> Option<Value> {
        let options = Options::of_tests(&["--redis-url=redis://redis"]);
        let template = serde_json::from_value(json!({"imagePullSecrets": [{"name": "registry"}]}));
        job(&named(), 3, phase, &template.unwrap(), &options).map(|job| json!(job))
    }

    #[test]
    fn an_end_without_a_manifest_is_told_by_a_pod_with_the_secret_and_nothing_else() {
        let phase = Phase::Failed {
            reason: "PlanFailed",
            message: "no such bucket".into(),
        };
        let made = made(&phase).expect("somebody is told");
        assert_eq!(made["metadata"]["name"], "job-notify-3");
        let ignored = &made["spec"]["podFailurePolicy"]["rules"][0];
        assert_eq!(ignored["action"], "Ignore", "an eviction is no failure");
        assert_eq!(ignored["onPodConditions"][0]["type"], "DisruptionTarget");
        let pod = &made["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let variables = container["env"].as_array().unwrap().iter();
        let event = variables
            .filter(|it| it["name"] == "MILLRACE_NOTIFY_EVENT")
            .find_map(|it| it["value"].as_str());
        let event: Value = serde_json::from_str(event.unwrap()).unwrap();
        assert_eq!(event["type"], "dev.millrace.batchjob.failed");
        assert_eq!(event["id"], "u-3-failed");
        assert_eq!(event["data"]["reason"], "PlanFailed");
        let places = container["volumeMounts"].as_array().unwrap();
        assert_eq!(places.len(), 1);
        assert_eq!(places[0]["mountPath"], format!("{}/hook", pods::SECRETS));
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    }

    #[test]
    fn what_a_finish_step_tells_of_is_not_told_twice() {
        assert!(made(&Phase::Running).is_none());
        assert!(made(&Phase::GivenUp(GiveUp::Cancelled, None)).is_some());
        let finished = super::super::decide::Finished {
            complete: false,
            shards: 2,
            failed_shards: 1,
            failed_indexes: Some("1".to_owned()),
            tally: Default::default(),
            routes: vec![],
            sample_errors: vec![],
            warning: None,
        };
        assert!(made(&Phase::GivenUp(GiveUp::Cancelled, Some(finished.clone()))).is_none());
        assert!(made(&Phase::Finished(finished)).is_none());
    }
}
