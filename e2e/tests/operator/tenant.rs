//! A namespace with what its user does in it.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use millrace_crds::{BatchJob, InferenceService};
use serde_json::{Value, json};

use crate::world::{World, WorldOptions};

/// Name of a tenant's service.
pub const SERVICE: &str = "minilm";

/// Name of a tenant's job.
pub const JOB: &str = "embed";

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(40);

/// A namespace whose Kubernetes is played.
pub struct Tenant {
    /// A client with all rights that passes no proxy.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
    /// What plays Kubernetes there.
    pub world: World,
}

impl Tenant {
    /// Makes the namespace, with what a controller manager would put into it.
    pub async fn new(client: Client, namespace: &str, redis_url: &str) -> Self {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let named = json!({"metadata": {"name": namespace}});
        let made: Namespace = serde_json::from_value(named).unwrap();
        let params = PostParams::default();
        namespaces.create(&params, &made).await.unwrap();
        let account = json!({"metadata": {"name": "default"}});
        let account: ServiceAccount = serde_json::from_value(account).unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        accounts.create(&params, &account).await.unwrap();
        let options = WorldOptions {
            client: client.clone(),
            namespace: namespace.to_owned(),
            redis_url: redis_url.to_owned(),
        };
        Self {
            client,
            namespace: namespace.to_owned(),
            world: World::start(options),
        }
    }

    /// The jobs.
    pub fn jobs(&self) -> Api<BatchJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The services.
    pub fn services(&self) -> Api<InferenceService> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The Deployments.
    pub fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a service that sleeps until a job comes.
    pub async fn create_service(&self, name: &str, patch: Value) {
        let service = serde_json::from_value(service(name, patch)).unwrap();
        let services = self.services();
        let created = services.create(&PostParams::default(), &service).await;
        created.unwrap();
    }

    /// Creates a job of a service.
    pub async fn create_job(&self, name: &str, service: &str, patch: Value) {
        let job = serde_json::from_value(job(name, service, patch)).unwrap();
        let created = self.jobs().create(&PostParams::default(), &job).await;
        created.unwrap();
    }

    /// Creates a Secret, with what does not matter here in it.
    pub async fn create_secret(&self, name: &str) {
        let secret = json!({"metadata": {"name": name}, "stringData": {"AWS_REGION": "x"}});
        let secret: Secret = serde_json::from_value(secret).unwrap();
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let created = secrets.create(&PostParams::default(), &secret).await;
        created.unwrap();
    }

    /// Changes fields of a service's spec.
    pub async fn change_service(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let services = self.services();
        let patched = services.patch(name, &PatchParams::default(), &patch).await;
        patched.unwrap();
    }

    /// Changes fields of a job's spec.
    pub async fn change_job(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let jobs = self.jobs();
        let patched = jobs.patch(name, &PatchParams::default(), &patch).await;
        patched.unwrap();
    }

    /// Has the pods of a service run on nodes with such a disk, and waits until the Deployment says so.
    pub async fn move_pods(&self, service: &str, disk: &str) {
        let template = json!({"template": {"nodeSelector": {"disk": disk}}});
        self.change_service(service, template).await;
        let is_told = |deployment: Option<&Deployment>| {
            let pod = deployment.and_then(|it| it.spec.template.spec.as_ref());
            let selector = pod.and_then(|pod| pod.node_selector.as_ref());
            selector.is_some_and(|it| it.get("disk").is_some_and(|it| it == disk))
        };
        let name = deployment_of(service);
        await_condition(self.deployments(), &name, is_told)
            .await
            .unwrap();
    }

    /// Lets a job rest, or go on.
    pub async fn suspend(&self, name: &str, suspend: bool) {
        self.change_job(name, json!({"suspend": suspend})).await;
    }

    /// Deletes a job.
    pub async fn delete_job(&self, name: &str) {
        let deleted = self.jobs();
        deleted
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// The message of a job's condition `Succeeded`.
    pub async fn message(&self, name: &str) -> Option<String> {
        let status = self.jobs().get(name).await.unwrap().status?;
        condition_of(&status.conditions, "Succeeded").map(|it| it.message.clone())
    }

    /// Waits until a job has a reason.
    pub async fn wait_for_reason(&self, name: &str, reason: &str) {
        let has_it = |job: Option<&BatchJob>| job.and_then(reason_of).as_deref() == Some(reason);
        await_condition(self.jobs(), name, has_it).await.unwrap();
    }

    /// Waits until a service has a reason. Gives the message beside it.
    pub async fn wait_for_readiness(&self, name: &str, reason: &str) -> String {
        let has_it = |service: Option<&InferenceService>| {
            let ready = service
                .and_then(|it| condition_of(it.status.as_ref()?.conditions.as_slice(), "Ready"));
            ready.is_some_and(|ready| ready.reason == reason)
        };
        let service = await_condition(self.services(), name, has_it)
            .await
            .unwrap();
        let status = service
            .and_then(|service| service.status)
            .expect("it has the reason");
        let ready = condition_of(&status.conditions, "Ready");
        ready.expect("it has the reason").message.clone()
    }

    /// Waits until so many shards are committed.
    pub async fn wait_for_commits(&self, count: usize) {
        while self.world.commits() < count {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The manifest of a service that sleeps until a job comes; `patch` is laid over its spec.
pub fn service(name: &str, patch: Value) -> Value {
    let mut service = json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "models": [{"name": "minilm", "task": "Embedding", "source": {"uri": "s3://bucket/minilm"}}],
            "autoscaling": {"minReplicas": 0, "maxReplicas": 2, "idleSeconds": 1},
        },
    });
    merge(&mut service["spec"], patch);
    service
}

/// The manifest of a job of a service; `patch` is laid over its spec.
pub fn job(name: &str, service: &str, patch: Value) -> Value {
    let mut job = json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "BatchJob",
        "metadata": {"name": name},
        "spec": {
            "serviceRef": {"name": service},
            "input": {"uris": ["s3://bucket/rows.jsonl"]},
            "output": {"uri": "s3://bucket/out"},
        },
    });
    merge(&mut job["spec"], patch);
    job
}

/// The name of a service's Deployment, where the service's own name is short.
pub fn deployment_of(service: &str) -> String {
    format!("{service}-inference")
}

/// The reason of a job's condition `Succeeded`, if it speaks of the job as it is now.
fn reason_of(job: &BatchJob) -> Option<String> {
    let status = job.status.as_ref()?;
    let succeeded = condition_of(&status.conditions, "Succeeded")?;
    let is_of_now = status.observed_generation == job.metadata.generation;
    is_of_now.then(|| succeeded.reason.clone())
}

fn condition_of<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|it| it.type_ == kind)
}

/// Lays the fields of `patch` over those of `object`.
fn merge(object: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) if object.is_object() => {
            for (name, value) in fields {
                merge(&mut object[name], value);
            }
        }
        patch => *object = patch,
    }
}
