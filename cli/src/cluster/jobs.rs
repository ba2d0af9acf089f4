//! Jobs of a cluster by name, and the one place that knows how a job names its service.

use anyhow::bail;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use millrace_crds::BatchJob;
use serde_json::Value;

use super::connect::{ClusterArgs, Connection, FIELD_MANAGER};

/// What may stand before a job's name.
const KINDS: [&str; 4] = ["batchjob", "batchjobs", "batchjobs.millrace.dev", "mbj"];

/// What stands for the newest job of the namespace. No object can have that name.
const LATEST: &str = "@latest";

/// The job of an argument: its name, `batchjob/NAME` as other commands print it, or `@latest`.
pub fn job_name(argument: &str) -> Result<String, String> {
    let name = of_kind(argument).unwrap_or(argument);
    if name.is_empty() || name.contains('/') {
        return Err("write the name of a BatchJob, such as embed or batchjob/embed".to_owned());
    }
    Ok(name.to_owned())
}

/// The name behind `batchjob/`; what stands for the newest job needs no kind.
fn of_kind(argument: &str) -> Option<&str> {
    if argument == LATEST {
        return Some(argument);
    }
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

/// The jobs of the namespace, or of all.
pub async fn listed(
    connection: &Connection,
    all_namespaces: bool,
) -> anyhow::Result<Vec<BatchJob>> {
    let (api, place) = if all_namespaces {
        let api = Api::<BatchJob>::all(connection.client.clone());
        (api, "in all namespaces".to_owned())
    } else {
        let place = format!("in namespace {}", connection.namespace);
        (connection.jobs(), place)
    };
    let listed = api.list(&ListParams::default()).await;
    let listed =
        listed.map_err(|error| connection.explain(error, &format!("list jobs {place}")))?;
    Ok(listed.items)
}

impl Connection {
    /// The jobs of the namespace.
    pub fn jobs(&self) -> Api<BatchJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The job of that name, or the newest one.
    pub async fn job(&self, name: &str) -> anyhow::Result<BatchJob> {
        if name == LATEST {
            return self.newest_job().await;
        }
        let doing = format!("get batchjob/{name} in namespace {}", self.namespace);
        match self.jobs().get(name).await {
            Ok(job) => Ok(job),
            Err(kube::Error::Api(status)) if status.code == 404 && status.details.is_some() => {
                bail!(no_such_job(name, self))
            }
            Err(error) => Err(self.explain(error, &doing)),
        }
    }

    async fn newest_job(&self) -> anyhow::Result<BatchJob> {
        let Some(job) = newest(listed(self, false).await?) else {
            bail!(
                "there is no job in namespace {} of {} that {LATEST} could be",
                self.namespace,
                self.server
            );
        };
        Ok(job)
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

/// The job that was created last; of several in the same second, the last by name.
fn newest(jobs: Vec<BatchJob>) -> Option<BatchJob> {
    let created = |job: &BatchJob| {
        let at = job.metadata.creation_timestamp.as_ref().map(|it| it.0);
        (at, job.metadata.name.clone())
    };
    jobs.into_iter().max_by_key(created)
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
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::cluster::show::testing::job;

    #[test]
    fn a_job_is_named_alone_or_with_its_kind() {
        for argument in ["embed", "batchjob/embed", "batchjobs/embed", "mbj/embed"] {
            assert_eq!(job_name(argument).unwrap(), "embed");
        }
        assert_eq!(job_name("@latest").unwrap(), LATEST);
        for argument in ["", "pod/embed", "batchjob/", "batchjob/a/b"] {
            assert!(job_name(argument).is_err(), "{argument}");
        }
    }

    #[test]
    fn the_latest_job_is_the_one_that_was_created_last() {
        let created = |name: &str, at: &str| {
            let mut job = job("Unknown", "Running");
            job.metadata.name = Some(name.to_owned());
            job.metadata.creation_timestamp = Some(Time(at.parse().unwrap()));
            job
        };
        let jobs = vec![
            created("z", "2026-01-02T03:00:00Z"),
            created("b", "2026-01-02T03:00:01Z"),
            created("a", "2026-01-02T03:00:01Z"),
        ];
        assert_eq!(newest(jobs).unwrap().metadata.name.as_deref(), Some("b"));
        assert!(newest(vec![]).is_none());
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
