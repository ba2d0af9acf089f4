//! `millrace submit`: checks manifests as `lint` does, applies them, and follows the job if asked.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use millrace_crds::manifest::{Document, Documents, Kind, Manifest};
use millrace_crds::{BatchJob, InferenceService};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::lint;
use crate::cluster::connect::{ClusterArgs, Connection, FIELD_MANAGER};
use crate::cluster::follow::follow;
use crate::cluster::show::Format;
use crate::cluster::summary;
use crate::{exit, manifests, output};

/// Sends jobs and services to the cluster, after the checks of `lint`.
///
/// What the manifests say counts, whoever set it before; what they do not mention stays as it is.
/// With --watch it follows the job to its end. Exit codes then: 0 completed; 1 failed, cancelled or
/// past its deadline; 3 finished, but some shards were given up.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// File or folder with BatchJobs and InferenceServices; `-` is standard input.
    #[arg(short = 'f', long, value_name = "PATH")]
    file: PathBuf,
    /// Follow the job to its end: a bar on a terminal, lines in a pipe.
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: SubmitArgs) -> anyhow::Result<ExitCode> {
    let SubmitArgs {
        file,
        watch,
        cluster,
    } = args;
    let Documents { ours, foreign } = match manifests::read(&file)? {
        Ok(documents) => documents,
        Err(error) => return Ok(exit::bad_manifest(&error)),
    };
    for foreign in foreign {
        eprintln!("{foreign} is not of millrace: not sent; `kubectl apply` sends it");
    }
    let documents = ours;
    for note in lint::notes(&documents) {
        eprintln!("note: {note}");
    }
    let problems = problems(&documents, watch, cluster.namespace.as_deref());
    if !problems.is_empty() {
        for problem in problems {
            eprintln!("error: {problem}");
        }
        return Ok(exit::BAD_MANIFEST.into());
    }
    let connection = cluster.connect().await?;
    let mut jobs = Vec::new();
    for document in in_order(documents) {
        let namespace = match document.manifest.namespace() {
            "" => connection.namespace.clone(),
            namespace => namespace.to_owned(),
        };
        let connection = connection.within(&namespace);
        if let Some(job) = apply(&connection, document).await? {
            jobs.push((connection, job));
        }
    }
    match (&jobs[..], watch) {
        ([(connection, job)], true) => follow(connection, &job.name_any(), Format::Text).await,
        _ => {
            let next = jobs
                .iter()
                .flat_map(|(connection, job)| summary::next(job, &connection.invocation));
            say_next(next.collect());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn say_next(commands: Vec<String>) {
    if !commands.is_empty() {
        eprintln!("next:\n  {}", commands.join("\n  "));
    }
}

/// What is wrong with the manifests, before a cluster is asked. Pure.
fn problems(documents: &[Document], watch: bool, namespace: Option<&str>) -> Vec<String> {
    let mut problems = lint::misfits(documents);
    let mut jobs = 0;
    for Document { manifest, .. } in documents {
        let (kind, name) = (manifest.kind().as_str(), manifest.name());
        let found = manifest.namespace();
        if let Some(asked) = namespace
            && !["", asked].contains(&found)
        {
            problems.push(format!(
                "{kind} {name} is of namespace {found}, and -n says {asked}: leave one away"
            ));
        }
        if let Manifest::BatchJob(job) = manifest {
            jobs += 1;
            problems.extend(local_paths(job));
        }
    }
    if watch && jobs != 1 {
        problems.push(format!(
            "--watch follows exactly one BatchJob, and there are {jobs}; submit them without it"
        ));
    }
    problems
}

/// Fields of the job that mean something on one machine alone.
fn local_paths(job: &BatchJob) -> impl Iterator<Item = String> {
    let name = job.name_any();
    job.local_paths().into_iter().map(move |field| {
        format!(
            "BatchJob {name}: {field} is a path of this machine; in a cluster write \
             s3://bucket/path, or work the job off here with `run`"
        )
    })
}

/// Services before jobs, so that no job waits for a service that comes with it.
fn in_order(mut documents: Vec<Document>) -> Vec<Document> {
    documents.sort_by_key(|document| match document.manifest.kind() {
        Kind::InferenceService => 0,
        Kind::BatchJob => 1,
    });
    documents
}

/// Applies one object and says what became of it. Gives it back if it is a job.
async fn apply(connection: &Connection, document: Document) -> anyhow::Result<Option<BatchJob>> {
    let Document {
        place: _,
        manifest,
        written,
    } = document;
    let applied = applied(written, &connection.namespace);
    match manifest {
        Manifest::BatchJob(job) => apply_as::<BatchJob>(connection, &job.name_any(), applied)
            .await
            .map(Some),
        Manifest::InferenceService(service) => {
            apply_as::<InferenceService>(connection, &service.name_any(), applied).await?;
            Ok(None)
        }
    }
}

/// The object as it is applied: what was written, in its namespace, without what only a server
/// writes.
fn applied(mut written: Value, namespace: &str) -> Value {
    if let Some(object) = written.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = written["metadata"].as_object_mut() {
        for server_s in [
            "creationTimestamp",
            "generation",
            "managedFields",
            "resourceVersion",
            "uid",
        ] {
            metadata.remove(server_s);
        }
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    written
}

async fn apply_as<K>(connection: &Connection, name: &str, object: Value) -> anyhow::Result<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let shown = format!("{}/{name}", K::kind(&()).to_lowercase());
    let doing = format!("apply {shown} in namespace {}", connection.namespace);
    let api: Api<K> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let before = match api.get(name).await {
        Ok(object) => object.resource_version(),
        Err(kube::Error::Api(status)) if status.code == 404 && status.details.is_some() => None,
        Err(error) => return Err(connection.explain(error, &doing)),
    };
    // Strict: CRDs that are older than this program would drop a field without a word.
    let params = PatchParams::apply(FIELD_MANAGER)
        .force()
        .validation_strict();
    let applied = api.patch(name, &params, &Patch::Apply(object)).await;
    let applied = applied.map_err(|error| connection.explain(error, &doing))?;
    if applied.meta().deletion_timestamp.is_some() {
        bail!("{shown} is being deleted; wait until it is gone, and submit again");
    }
    let became = became(before.as_deref(), applied.resource_version().as_deref());
    output::line(&format!("{shown} {became}"))?;
    Ok(applied)
}

/// What became of an object, by its version before and after.
fn became(before: Option<&str>, after: Option<&str>) -> &'static str {
    match before {
        None => "created",
        before if before == after => "unchanged",
        Some(_) => "configured",
    }
}

#[cfg(test)]
mod tests {
    use millrace_crds::manifest::documents_of_str;

    use super::*;

    const SERVICE: &str = "
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: minilm}
spec:
  models: [{name: minilm, task: Embedding, source: {uri: s3://bucket/model}}]
";

    const JOB: &str = "
apiVersion: millrace.dev/v1alpha1
kind: BatchJob
metadata: {name: embed, namespace: tenant}
spec:
  serviceRef: {name: minilm}
  input: {uris: ['s3://bucket/rows.jsonl']}
  output: {uri: 's3://bucket/out'}
";

    fn documents(text: &str) -> Vec<Document> {
        documents_of_str("text", text).unwrap().ours
    }

    #[test]
    fn services_are_applied_before_the_jobs_that_name_them() {
        let ordered = in_order(documents(&format!("{JOB}---{SERVICE}")));
        let kinds: Vec<Kind> = ordered.iter().map(|it| it.manifest.kind()).collect();
        assert_eq!(kinds, [Kind::InferenceService, Kind::BatchJob]);
    }

    #[test]
    fn good_manifests_have_no_problem() {
        let documents = documents(&format!("{SERVICE}---{JOB}"));
        assert_eq!(problems(&documents, true, Some("tenant")), [""; 0]);
    }

    #[test]
    fn what_can_only_fail_later_is_refused_now() {
        let check = |text: &str, watch, namespace, expected: &str| {
            let found = problems(&documents(text), watch, namespace);
            assert!(
                found.iter().any(|it| it.contains(expected)),
                "{found:?} lacks {expected}"
            );
        };
        check(JOB, false, Some("other"), "-n says other");
        let local = JOB.replace("s3://bucket/out", "out");
        check(
            &local,
            false,
            None,
            "spec.output.uri is a path of this machine",
        );
        let file = JOB.replace("s3://bucket/rows.jsonl", "file:///rows.jsonl");
        check(
            &file,
            false,
            None,
            "spec.input.uris[0] is a path of this machine",
        );
        check(SERVICE, true, None, "exactly one BatchJob");
        let misfit = JOB.replace(", namespace: tenant", "") + "  steps: [{name: a, model: nope}]\n";
        check(
            &format!("{SERVICE}---{misfit}"),
            false,
            None,
            "no model \"nope\"",
        );
    }

    #[test]
    fn an_object_is_applied_as_it_was_written() {
        let job = JOB.replace(
            "metadata: {name: embed, namespace: tenant}",
            "metadata: {name: embed, resourceVersion: '7', labels: {team: a}}",
        );
        let [document] = &documents(&job)[..] else {
            panic!("one document");
        };
        let applied = applied(document.written.clone(), "tenant");
        assert_eq!(
            applied["metadata"],
            json!({"name": "embed", "namespace": "tenant", "labels": {"team": "a"}})
        );
        // Neither of them would stay as a person set it since.
        assert_eq!(applied["spec"].get("suspend"), None);
        assert_eq!(applied["spec"].get("rerunFailed"), None);
    }

    #[test]
    fn the_versions_tell_what_became_of_an_object() {
        assert_eq!(became(None, Some("1")), "created");
        assert_eq!(became(Some("1"), Some("1")), "unchanged");
        assert_eq!(became(Some("1"), Some("2")), "configured");
    }
}
