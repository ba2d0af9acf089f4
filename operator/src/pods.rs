//! What all pods have in common: they pass Pod Security *restricted*, hold no API token, and find
//! settings, credentials and manifests in the same places.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use millrace_crds::inference_service::{PodTemplate, Resources, Toleration};
use serde_json::{Value, json};

use crate::config::Options;

/// Folder with one folder per mounted Secret, named like it.
pub const SECRETS: &str = "/var/run/millrace/secrets";

/// Folder with the manifests.
pub const MANIFESTS: &str = "/etc/millrace";

/// Key of the lease Redis' URL in the Secret that pods take it from.
pub const REDIS_URL_KEY: &str = "url";

/// Key of the cache Redis' URL in the same Secret.
pub const CACHE_URL_KEY: &str = "cache-url";

/// Why a container waits that is about to begin.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// How long containers usually take to begin.
const BEGINS_WITHIN: SignedDuration = SignedDuration::from_secs(3);

/// Gives a pod what all pods around a service have in common: who they are, where they run and with what
/// their images are pulled. The steps of a job would else wait for a node or an image that the service
/// does not wait for.
pub fn place(pod: &mut Value, template: &PodTemplate) {
    let PodTemplate {
        pod_labels: _,
        pod_annotations: _,
        service_account_name,
        node_selector,
        tolerations,
        topology_spread_constraints: _,
        resources: _,
        worker_resources: _,
        models_resources: _,
        step_resources: _,
        resource_claims: _,
        volumes: _,
        image_pull_secrets,
        priority_class_name: _,
        runtime_class_name: _,
    } = template;
    let tolerations: Vec<Value> = tolerations.iter().map(toleration).collect();
    pod["serviceAccountName"] = json!(service_account_name);
    pod["nodeSelector"] = json!(node_selector);
    pod["tolerations"] = json!(tolerations);
    pod["imagePullSecrets"] = json!(image_pull_secrets);
}

/// The metadata of such a pod. What the operator says itself counts before what the template says.
pub fn pod_metadata(
    template: &PodTemplate,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
) -> Value {
    let with = |mut given: BTreeMap<String, String>, own| {
        given.extend(own);
        given
    };
    json!({
        "labels": with(template.pod_labels.clone(), labels),
        "annotations": with(template.pod_annotations.clone(), annotations),
    })
}

/// The resources that are given, or else these.
pub fn resources(given: &Resources, otherwise: Value) -> Value {
    if given.is_empty() {
        return otherwise;
    }
    json!(given)
}

fn toleration(toleration: &Toleration) -> Value {
    let Toleration { key, value, effect } = toleration;
    let operator = if value.is_some() { "Equal" } else { "Exists" };
    json!({"key": key, "operator": operator, "value": value, "effect": effect})
}

/// What counts as a failure of a Job's pod: not that it was evicted, preempted or drained, which says
/// nothing of what it does.
pub fn failure_policy() -> Value {
    let disrupted = json!({"type": "DisruptionTarget", "status": "True"});
    json!({"rules": [{"action": "Ignore", "onPodConditions": [disrupted]}]})
}

/// Rights of a pod.
pub fn pod_security() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Rights of a container.
pub fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// The variables of everything that uses leases; `secret` holds the URL.
pub fn lease_variables(options: &Options, secret: &str) -> Vec<Value> {
    vec![
        json!({
            "name": "MILLRACE_LEASES_REDIS_URL",
            "valueFrom": {"secretKeyRef": {"name": secret, "key": REDIS_URL_KEY}},
        }),
        json!({"name": "MILLRACE_LEASE_TTL_MS", "value": options.lease_ttl_ms.to_string()}),
    ]
}

/// The variables by which pods trace to where the operator traces; none if it does not.
pub fn telemetry_variables(options: &Options) -> Vec<Value> {
    let variables = options.telemetry.iter();
    variables
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect()
}

/// The variables of everything that opens stores.
pub fn store_variables(options: &Options) -> Vec<Value> {
    [
        ("MILLRACE_ALLOW_LINK_LOCAL", options.allow_link_local),
        ("MILLRACE_ALLOW_LOOPBACK", options.allow_loopback),
    ]
    .map(|(name, allowed)| json!({"name": name, "value": allowed.to_string()}))
    .to_vec()
}

/// Volume and mount of one Secret with credentials.
pub fn credentials(secret: &str) -> (Value, Value) {
    // A volume's name is a label, a Secret's may be longer and hold dots.
    let volume = crate::names::child(secret, "secret");
    (
        json!({"name": volume, "secret": {"secretName": secret}}),
        json!({"name": volume, "mountPath": format!("{SECRETS}/{secret}"), "readOnly": true}),
    )
}

/// What a pod waits for, if it is something that a person may have to mend: a node with room, an
/// image, a Secret, a model.
pub fn waits_for(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let waits = containers(status).find_map(waiting_reason);
    waits.or_else(|| unscheduled_reason(pod))
}

/// What keeps a pod's volumes from being mounted, such as a Secret that is not there: only Events
/// say it. Asked of pods that have been about to start for a while.
pub async fn mount_failure(
    client: &Client,
    namespace: &str,
    pods: &[Pod],
    now: &Time,
) -> Result<Option<String>, kube::Error> {
    let Some(pod) = pods.iter().find(|pod| is_held_up(pod, now)) else {
        return Ok(None);
    };
    last_event(client, namespace, "FailedMount", pod.uid()).await
}

/// What keeps a Job from getting its pod, such as a quota or Pod Security: only Events say it. Asked
/// of Jobs that have had no pod for longer than they usually do.
pub async fn creation_failure(
    client: &Client,
    namespace: &str,
    job: &Job,
    now: &Time,
) -> Result<Option<String>, kube::Error> {
    let since = job.creation_timestamp();
    let waits = since.map(|since| now.0.duration_since(since.0));
    if waits.is_none_or(|waits| waits <= BEGINS_WITHIN) {
        return Ok(None);
    }
    last_event(client, namespace, "FailedCreate", job.uid()).await
}

/// What the last Event with this reason said of an object.
async fn last_event(
    client: &Client,
    namespace: &str,
    reason: &str,
    uid: Option<String>,
) -> Result<Option<String>, kube::Error> {
    let uid = uid.unwrap_or_default();
    let of_object = format!("reason={reason},involvedObject.uid={uid}");
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let events = events
        .list(&ListParams::default().fields(&of_object))
        .await?;
    let last = events
        .items
        .into_iter()
        .max_by_key(|event| event.last_timestamp.clone());
    Ok(last.and_then(|event| event.message))
}

/// Whether a pod has a node and none of its containers has begun for longer than they usually take.
fn is_held_up(pod: &Pod, now: &Time) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    let begins = |container: &ContainerStatus| {
        let state = container.state.as_ref();
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        reason.is_some_and(|reason| BEGINNING.contains(&reason))
    };
    let since = status.start_time.as_ref();
    let waits = since.map(|since| now.0.duration_since(since.0));
    waits.is_some_and(|waits| waits > BEGINS_WITHIN) && containers(status).all(begins)
}

/// All containers of a pod, in the order in which they begin.
fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten())
}

fn waiting_reason(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone()?;
    if BEGINNING.contains(&reason.as_str()) {
        return None;
    }
    // Why a container ended says more than that it is started again.
    let ended = container.last_state.as_ref();
    let ended = ended.and_then(|state| state.terminated.as_ref()?.message.clone());
    let message = ended
        .or_else(|| waiting.message.clone())
        .unwrap_or_default();
    Some(format!("{reason}: {}", message.trim()))
}

fn unscheduled_reason(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|it| it.type_ == "PodScheduled")?;
    (scheduled.status == "False").then(|| scheduled.message.clone().unwrap_or_default())
}
