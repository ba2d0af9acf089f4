//! Jobs of a cluster by name, and the one place that knows how a job names its service.

use anyhow::bail;
use kube::Api;
use kube::api::{Patch, PatchParams};
use millrace_crds::BatchJob;
use serde_json::Value;

use super::connect::{ClusterArgs, Connection, FIELD_MANAGER};

/// What may stand before a job's name.
const KINDS: [&str; 4] = ["batchjob", "batchjobs", "batchjobs.millrace.dev", "mbj"];

/// The job of an argument: its name, or `batchjob/NAME` as other commands print it.
pub fn job_name(argument: &str) -> Result<String, String> {
    let name = of_kind(argument).unwrap_or(argument);
    if name.is_empty() || name.contains('/') {
        return Err("write the name of a BatchJob, such as embed or batchjob/embed".to_owned());
    }
    Ok(name.to_owned())
}

/// The name behind `batchjob/`.
fn of_kind(argument: &str) -> Option<&str> {
    let (kind, name) = argument.split_once('/')?;
    KINDS.contains(&kind).then_some(name)
}

/// Where the results of the job are.
pub fn output_of(job: &BatchJob) -> &str {
    let said = job.status.as_ref().and_then(|it| it.output.as_deref());
    said.unwrap_or(&job.spec.output.uri)
}

/// The output that a person names: a folder or a URI as it stands, or that of `batchjob/NAME`, which
/// the cluster knows.
pub async fn resolve_output(named: String, cluster: &ClusterArgs) -> anyhow::Result<String> {
    let Some(name) = of_kind(&named) else {
        return Ok(named);
    };
    let job = cluster.connect().await?.job(name).await?;
    let output = output_of(&job);
    if !output.contains("://") {
        bail!("{named} writes to {output:?}, which is a path of another machine");
    }
    Ok(output.to_owned())
}

impl Connection {
    /// The jobs of the namespace.
    pub fn jobs(&self) -> Api<BatchJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The job of that name.
    pub async fn job(&self, name: &str) -> anyhow::Result<BatchJob> {
        let doing = format!("get batchjob/{name} in namespace {}", self.namespace);
        match self.jobs().get(name).await {
            Ok(job) => Ok(job),
            Err(kube::Error::Api(status)) if status.code == 404 && status.details.is_some() => {
                bail!(no_such_job(name, self))
            }
            Err(error) => Err(self.explain(error, &doing)),
        }
    }

    /// Changes a few fields of a job.
    pub async fn patch(&self, name: &str, patch: &Value) -> anyhow::Result<BatchJob> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patched = self.jobs().patch(name, &params, &Patch::Merge(patch)).await;
        patched.map_err(|error| {
            let doing = format!("change batchjob/{name} in namespace {}", self.namespace);
            self.explain(error, &doing)
        })
    }
}

fn no_such_job(name: &str, connection: &Connection) -> String {
    format!(
        "there is no batchjob/{name} in namespace {} of {}; `{}` shows the jobs of all namespaces",
        connection.namespace,
        connection.server,
        connection.invocation.command("list -A")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_named_alone_or_with_its_kind() {
        for argument in ["embed", "batchjob/embed", "batchjobs/embed", "mbj/embed"] {
            assert_eq!(job_name(argument).unwrap(), "embed");
        }
        for argument in ["", "pod/embed", "batchjob/", "batchjob/a/b"] {
            assert!(job_name(argument).is_err(), "{argument}");
        }
    }

    #[tokio::test]
    async fn only_what_names_a_job_asks_a_cluster() {
        let nowhere = ClusterArgs::default();
        for named in ["s3://bucket/batchjob", "./batchjob/embed", "out"] {
            let resolved = resolve_output(named.to_owned(), &nowhere).await;
            assert_eq!(resolved.unwrap(), named);
        }
    }

    #[test]
    fn the_output_is_what_the_status_says_before_what_the_spec_asks() {
        let mut job: BatchJob = serde_json::from_value(serde_json::json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob", "metadata": {"name": "embed"},
            "spec": {
                "serviceRef": {"name": "minilm"},
                "input": {"uris": ["s3://bucket/in"]}, "output": {"uri": "s3://bucket/out"},
            },
        }))
        .unwrap();
        assert_eq!(output_of(&job), "s3://bucket/out");
        job.status = Some(millrace_crds::BatchJobStatus {
            output: Some("s3://bucket/out/absolute".to_owned()),
            ..Default::default()
        });
        assert_eq!(output_of(&job), "s3://bucket/out/absolute");
    }
}
