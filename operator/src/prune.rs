//! Takes away what earlier runs of a job left in the cluster; what they wrote stays.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use millrace_crds::BatchJob;
use millrace_protocol::plan::RunNumber;

use crate::apply::delete;
use crate::names::{JOB_LABEL, label_value, step};
use crate::objects::Namespaced;

/// What each run has of its own. The Job that tells of an end is none of it: it may still be telling of
/// the run before, and goes by itself.
const OF_EACH_RUN: [&str; 3] = ["manifests", "plan", "finish"];

/// Deletes the Jobs and ConfigMaps of all runs of a job before this one, if this is its last one.
pub async fn earlier_runs(
    client: &Client,
    job: &BatchJob,
    run: RunNumber,
) -> Result<(), kube::Error> {
    if has_next_run(client, job, run).await? {
        return Ok(());
    }
    delete_earlier::<ConfigMap>(client, job, run).await?;
    delete_earlier::<Job>(client, job, run).await
}

/// Whether a job is in a run after this one already, so that who takes it to be in this one has seen it
/// as it was a while ago. What this run had is taken away, and must not be made again.
pub async fn has_next_run(
    client: &Client,
    job: &BatchJob,
    run: RunNumber,
) -> Result<bool, kube::Error> {
    let namespace = job.namespace().unwrap_or_default();
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let next = step(&job.name_any(), "manifests", run + 1);
    let next = config_maps.get_metadata_opt(&next).await?;
    Ok(next.is_some_and(|next| is_of(&next.metadata, job)))
}

async fn delete_earlier<K: Namespaced>(
    client: &Client,
    job: &BatchJob,
    run: RunNumber,
) -> Result<(), kube::Error> {
    let namespace = job.namespace().unwrap_or_default();
    let children: Api<K> = Api::namespaced(client.clone(), &namespace);
    let of_runs = format!(
        "{JOB_LABEL}={},app.kubernetes.io/component in ({})",
        label_value(&job.name_any()),
        OF_EACH_RUN.join(",")
    );
    let of_runs = ListParams::default().labels(&of_runs);
    for child in children.list_metadata(&of_runs).await? {
        if is_earlier(&child.metadata, job, run) {
            delete::<K>(client, &namespace, &child.name_any()).await?;
        }
    }
    Ok(())
}

/// Whether a child is the job's and of another run than its last one. A job of the same name may have been
/// there before.
fn is_earlier(child: &ObjectMeta, job: &BatchJob, run: RunNumber) -> bool {
    let of_this_run = OF_EACH_RUN.map(|it| step(&job.name_any(), it, run));
    is_of(child, job) && (child.name.as_ref()).is_none_or(|name| !of_this_run.contains(name))
}

fn is_of(child: &ObjectMeta, job: &BatchJob) -> bool {
    let mut owners = child.owner_references.iter().flatten();
    owners.any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_another_run_of_the_same_job_left_is_taken_away() {
        let job: BatchJob = serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
            "metadata": {"name": "job", "namespace": "tenant", "uid": "u"},
            "spec": {
                "serviceRef": {"name": "service"},
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap();
        let check = |name: &str, uid: &str, expected: bool| {
            let owner = json!({"apiVersion": "", "kind": "BatchJob", "name": "job", "uid": uid});
            let child = json!({"name": name, "ownerReferences": [owner]});
            let child = serde_json::from_value(child).unwrap();
            assert_eq!(is_earlier(&child, &job, 3), expected, "{name} of {uid}");
        };
        check("job-plan", "u", true);
        check("job-manifests-2", "u", true);
        check("job-plan-3", "u", false);
        check("job-manifests-3", "u", false);
        check("job-plan", "another", false);
    }
}
