//! `millrace check`: whether a cluster can take millrace, or has it and is well.

use std::process::ExitCode;

use clap::Args;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use millrace_crds::crd;
use millrace_crds::manifest::Kind;
use serde_json::Value;

use crate::cluster::connect::{ClusterArgs, Connection};
use crate::cluster::explain;
use crate::cluster::verdict::{self, Pods, Verdict};
use crate::cluster::workers::unstarted;
use crate::output;

/// How an administrator gives a person the rights to work with jobs.
const ASK_FOR_RIGHTS: &str = "ask an administrator for these rights in the namespace";

/// How millrace comes into a cluster.
const INSTALL: &str = "install millrace: helm install millrace charts/millrace -n millrace-system \
                       --create-namespace";

/// Where the API server describes the kinds of this API to anybody who may speak to it.
const OPENAPI: &str = "/openapi/v3/apis/millrace.dev/v1alpha1";

/// Checks that a cluster has what jobs need: CRDs, the operator, its Redis, your rights.
///
/// With --pre it checks that millrace can be installed. One line per check; a failed one says what
/// to do. Exit codes: 0 all is well; 1 a check failed.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Before the installation: version and rights.
    #[arg(long)]
    pre: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs { pre, cluster } = args;
    let connection = cluster.connect().await?;
    let mut report = Report::default();
    let version = connection.client.apiserver_version().await;
    let version = match version {
        Ok(version) => version,
        Err(error) => {
            let error = connection.explain(error, "ask for the version");
            report.say("API server", Err(error));
            // Everything else would only say the same again.
            return report.end();
        }
    };
    report.say("API server", Ok(Verdict::Good(connection.server.clone())));
    let version = verdict::version(&version.major, &version.minor);
    report.say("Kubernetes", Ok(version));
    if pre {
        before(&connection, &mut report).await;
    } else {
        after(&connection, &mut report).await;
    }
    report.end()
}

/// What an installation needs.
async fn before(connection: &Connection, report: &mut Report) {
    let hint = "install with an account that may, such as cluster-admin";
    for (name, group, resource) in [
        ("CRDs", "apiextensions.k8s.io", "customresourcedefinitions"),
        ("ClusterRoles", "rbac.authorization.k8s.io", "clusterroles"),
        (
            "ClusterRoleBindings",
            "rbac.authorization.k8s.io",
            "clusterrolebindings",
        ),
    ] {
        let right = Right {
            group,
            resource,
            subresource: None,
            namespace: None,
        };
        report.say(name, rights(connection, &right, &["create"], hint).await);
    }
}

/// What jobs need.
async fn after(connection: &Connection, report: &mut Report) {
    let openapi = openapi(connection).await;
    for kind in Kind::ALL {
        let verdict = match &openapi {
            Ok(openapi) => Ok(served(kind, openapi.as_ref())),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        report.say(kind.as_str(), verdict);
    }
    let operator = operator(connection).await;
    let is_there = operator.as_ref().is_ok_and(Option::is_some);
    let missing = || Verdict::bad("no Deployment of it in any namespace", INSTALL);
    report.say("operator", operator.map(|it| it.unwrap_or_else(missing)));
    if is_there {
        report.say("leases", leases(connection).await);
    }
    let namespace = connection.namespace.as_str();
    for (group, resource, subresource, verbs) in [
        (
            "millrace.dev",
            "batchjobs",
            None,
            &["get", "list", "watch", "create", "patch"][..],
        ),
        (
            "millrace.dev",
            "inferenceservices",
            None,
            &["get", "create", "patch"],
        ),
        ("", "pods", None, &["list"]),
        ("", "pods", Some("log"), &["get"]),
        ("", "events", None, &["list"]),
    ] {
        let right = Right {
            group,
            resource,
            subresource,
            namespace: Some(namespace),
        };
        let name = format!("your rights on {} in {namespace}", right.shown());
        let verdict = rights(connection, &right, verbs, ASK_FOR_RIGHTS).await;
        report.say(&name, verdict);
    }
}

/// What the API server says of the kinds of this API; nothing if it does not know them.
async fn openapi(connection: &Connection) -> anyhow::Result<Option<Value>> {
    let request = http::Request::get(OPENAPI).body(Vec::new())?;
    match connection.client.request::<Value>(request).await {
        Ok(openapi) => Ok(Some(openapi)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(connection.explain(error, "ask which fields are served")),
    }
}

/// Whether the kind is served with the fields that this program knows.
fn served(kind: Kind, openapi: Option<&Value>) -> Verdict {
    let name = format!("dev.millrace.v1alpha1.{}", kind.as_str());
    let schema = openapi.map(|openapi| &openapi["components"]["schemas"][&name]);
    match schema.filter(|schema| !schema.is_null()) {
        Some(schema) => verdict::fields(&verdict::missing_fields(&crd::schema(kind), schema)),
        None => Verdict::bad("not served at v1alpha1", INSTALL),
    }
}

/// The Deployment of the operator, in any namespace; nothing if there is none.
async fn operator(connection: &Connection) -> anyhow::Result<Option<Verdict>> {
    let api: Api<Deployment> = Api::all(connection.client.clone());
    let found = match api.list(&of_component("operator")).await {
        Ok(found) => found.items,
        Err(error) => return unseen(connection, error, "deployments").map(Some),
    };
    let Some(deployment) = found.first() else {
        return Ok(None);
    };
    let status = deployment.status.as_ref();
    let ready = status.and_then(|it| it.available_replicas);
    let wanted = deployment.spec.replicas;
    let pods = Pods::of("operator", &deployment.metadata, ready, wanted);
    Ok(Some(verdict_on(connection, pods).await))
}

/// The Redis that came with the chart, if one did.
async fn leases(connection: &Connection) -> anyhow::Result<Verdict> {
    let api: Api<StatefulSet> = Api::all(connection.client.clone());
    let found = match api.list(&of_component("leases")).await {
        Ok(found) => found.items,
        Err(error) => return unseen(connection, error, "statefulsets"),
    };
    let Some(redis) = found.first() else {
        let own = "no Redis came with the chart, so it is one of your own";
        return Ok(Verdict::Good(own.to_owned()));
    };
    let ready = redis.status.as_ref().and_then(|it| it.ready_replicas);
    let pods = Pods::of("leases", &redis.metadata, ready, redis.spec.replicas);
    Ok(verdict_on(connection, pods).await)
}

/// Whether the pods are ready, and why not, as far as this account may see them.
async fn verdict_on(connection: &Connection, pods: Pods<'_>) -> Verdict {
    let api: Api<Pod> = Api::namespaced(connection.client.clone(), pods.namespace);
    let found = match pods.ready {
        0 => api.list(&of_component(pods.component)).await.ok(),
        _ => None,
    };
    let unstarted = found.and_then(|found| unstarted(&found.items));
    pods.verdict(unstarted.as_deref())
}

fn of_component(component: &str) -> ListParams {
    let labels = format!("app.kubernetes.io/name=millrace,app.kubernetes.io/component={component}");
    ListParams::default().labels(&labels)
}

/// Nothing is known of what this account may not see.
fn unseen(connection: &Connection, error: kube::Error, plural: &str) -> anyhow::Result<Verdict> {
    if explain::is_forbidden(&error) {
        return Ok(Verdict::Unknown(format!(
            "this account may not list {plural} of all namespaces; an administrator sees more"
        )));
    }
    Err(connection.explain(error, &format!("list {plural} of all namespaces")))
}

/// A kind of object that a person wants to work with.
struct Right<'a> {
    group: &'a str,
    resource: &'a str,
    subresource: Option<&'a str>,
    namespace: Option<&'a str>,
}

impl Right<'_> {
    fn shown(&self) -> String {
        let Self {
            resource,
            subresource,
            ..
        } = self;
        subresource.map_or((*resource).to_owned(), |sub| format!("{resource}/{sub}"))
    }
}

/// Asks the API server what this account may do.
async fn rights(
    connection: &Connection,
    right: &Right<'_>,
    verbs: &[&str],
    hint: &str,
) -> anyhow::Result<Verdict> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(connection.client.clone());
    let mut asked = Vec::new();
    for verb in verbs {
        let attributes = ResourceAttributes {
            group: Some(right.group.to_owned()),
            resource: Some(right.resource.to_owned()),
            subresource: right.subresource.map(str::to_owned),
            namespace: right.namespace.map(str::to_owned),
            verb: Some((*verb).to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                non_resource_attributes: None,
            },
            ..SelfSubjectAccessReview::default()
        };
        let answered = reviews.create(&PostParams::default(), &review).await;
        let answered = answered.map_err(|error| connection.explain(error, "ask for rights"))?;
        let allowed = answered.status.is_some_and(|status| status.allowed);
        asked.push(((*verb).to_owned(), allowed));
    }
    Ok(verdict::rights(&asked, hint))
}

/// Prints each check as it comes out.
#[derive(Default)]
struct Report {
    failed: u32,
    /// Why nothing more could be printed.
    unprinted: Option<std::io::Error>,
}

impl Report {
    fn say(&mut self, name: &str, verdict: anyhow::Result<Verdict>) {
        let verdict =
            verdict.unwrap_or_else(|error| Verdict::bad("cannot be checked", format!("{error:#}")));
        self.failed += u32::from(verdict.is_bad());
        let lines = verdict.lines(name).join("\n");
        if self.unprinted.is_none() {
            self.unprinted = output::line(&lines).err();
        }
    }

    fn end(self) -> anyhow::Result<ExitCode> {
        if let Some(error) = self.unprinted {
            return Err(error.into());
        }
        Ok(match self.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_kinds_are_found_among_what_the_server_describes() {
        let mut openapi = json!({"components": {"schemas": {}}});
        assert!(served(Kind::BatchJob, None).is_bad());
        assert!(served(Kind::BatchJob, Some(&openapi)).is_bad());
        let schemas = &mut openapi["components"]["schemas"];
        schemas["dev.millrace.v1alpha1.BatchJob"] = crd::schema(Kind::BatchJob);
        assert!(!served(Kind::BatchJob, Some(&openapi)).is_bad());
    }
}
