//! The pods of a service in a few words. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A pod that works.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Where it runs, once it is placed.
    pub node: Option<String>,
    /// Its phase, or the reason why it is not well.
    pub state: String,
    /// Containers that are ready, and all that stay.
    pub ready: (usize, usize),
    /// How often its containers were started again.
    pub restarts: i32,
    /// When it was made.
    pub created: Option<Time>,
}

/// What is to be told of a pod.
pub fn worker(pod: &Pod) -> Worker {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let sidecars_asked = spec.map_or(0, |spec| {
        let init = spec.init_containers.iter().flatten();
        init.filter(|it| it.restart_policy.is_some()).count()
    });
    let asked = spec.map_or(0, |spec| spec.containers.len()) + sidecars_asked;
    let lasting = containers(pod).filter(|it| !is_step(pod, &it.name));
    let ready = lasting.filter(|it| it.ready).count();
    let phase = status.phase.unwrap_or_else(|| "Unknown".to_owned());
    let state = if pod.metadata.deletion_timestamp.is_some() {
        "Terminating".to_owned()
    } else {
        let unplaced =
            status.conditions.iter().flatten().any(|it| {
                it.type_ == "PodScheduled" && it.reason.as_deref() == Some("Unschedulable")
            });
        match containers(pod).find_map(trouble) {
            Some(trouble) => trouble,
            None if unplaced => "Unschedulable".to_owned(),
            None => phase,
        }
    };
    Worker {
        name: pod.metadata.name.clone().unwrap_or_default(),
        node: spec.and_then(|spec| spec.node_name.clone()),
        state,
        ready: (ready, asked),
        restarts: containers(pod).map(|it| it.restart_count).sum(),
        created: pod.metadata.creation_timestamp.clone(),
    }
}

/// All containers of a pod, in the order in which they begin.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    let init = status.clone().flat_map(|it| &it.init_container_statuses);
    init.chain(status.flat_map(|it| &it.container_statuses))
        .flatten()
}

/// Why the pods have not started, as far as a container of them says so: there are no logs then.
pub fn unstarted(pods: &[Pod]) -> Option<String> {
    let waiting = |container: &ContainerStatus| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        // It waits for the containers before it, which say more, or it started before.
        if reason == "PodInitializing" || container.restart_count > 0 {
            return None;
        }
        let message = waiting.message.as_deref().map(|it| format!(": {it}"));
        let message = message.unwrap_or_default();
        Some(format!("{reason} {}{message}", container.image))
    };
    pods.iter().flat_map(containers).find_map(waiting)
}

/// Whether the container ends before the others begin.
fn is_step(pod: &Pod, container: &str) -> bool {
    let init = pod.spec.iter().flat_map(|it| &it.init_containers);
    let mut init = init.flatten();
    init.any(|it| it.name == container && it.restart_policy.is_none())
}

/// Why a container is not well.
fn trouble(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let ended = |state: &k8s_openapi::api::core::v1::ContainerState| {
        let ended = state.terminated.clone()?;
        (ended.exit_code != 0).then(|| ended.reason.unwrap_or_else(|| "Error".to_owned()))
    };
    if let Some(reason) = ended(state) {
        return Some(reason);
    }
    let reason = state.waiting.as_ref()?.reason.clone()?;
    if ["ContainerCreating", "PodInitializing"].contains(&reason.as_str()) {
        return None;
    }
    // Why a container ended says more than that it is started again.
    let before = container.last_state.as_ref().and_then(ended);
    Some(
        before
            .filter(|before| before == "OOMKilled")
            .unwrap_or(reason),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(status: Value) -> Worker {
        let pod = json!({
            "metadata": {"name": "pod"},
            "spec": {
                "nodeName": "node",
                "initContainers": [
                    {"name": "models"}, {"name": "worker", "restartPolicy": "Always"},
                ],
                "containers": [{"name": "server"}],
            },
            "status": status,
        });
        worker(&serde_json::from_value(pod).unwrap())
    }

    fn container(name: &str, ready: bool, restarts: i32, state: Value, last: Value) -> Value {
        json!({
            "name": name, "ready": ready, "restartCount": restarts, "image": "i", "imageID": "i",
            "state": state, "lastState": last,
        })
    }

    #[test]
    fn a_pod_that_serves_counts_its_sidecar_as_ready() {
        let told = told(json!({
            "phase": "Running",
            "initContainerStatuses": [
                container("models", true, 0, json!({"terminated": {"exitCode": 0}}), json!({})),
                container("worker", true, 1, json!({"running": {}}), json!({})),
            ],
            "containerStatuses": [container("server", true, 0, json!({"running": {}}), json!({}))],
        }));
        assert_eq!(told.ready, (2, 2));
        assert_eq!((told.state.as_str(), told.restarts), ("Running", 1));
    }

    #[test]
    fn a_pod_that_is_not_well_says_why() {
        let check = |state: Value, last: Value, expected: &str| {
            let status = json!({
                "phase": "Pending",
                "containerStatuses": [container("server", false, 3, state, last)],
            });
            assert_eq!(told(status).state, expected);
        };
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        check(waiting("ImagePullBackOff"), json!({}), "ImagePullBackOff");
        check(waiting("PodInitializing"), json!({}), "Pending");
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        check(waiting("CrashLoopBackOff"), killed, "OOMKilled");
        let failed = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
        check(waiting("CrashLoopBackOff"), failed, "CrashLoopBackOff");
    }

    #[test]
    fn a_container_that_never_started_says_what_it_waits_for() {
        let pod = |restarts: i32, reason: &str, message: Option<&str>| -> Pod {
            let waiting = json!({"waiting": {"reason": reason, "message": message}});
            let status = container("operator", false, restarts, waiting, json!({}));
            let pod = json!({"metadata": {}, "status": {"containerStatuses": [status]}});
            serde_json::from_value(pod).unwrap()
        };
        let check = |pod: Pod, expected: Option<&str>| {
            assert_eq!(unstarted(&[pod]).as_deref(), expected);
        };
        check(
            pod(0, "ErrImageNeverPull", None),
            Some("ErrImageNeverPull i"),
        );
        let message = "no such image";
        check(
            pod(0, "ErrImagePull", Some(message)),
            Some("ErrImagePull i: no such image"),
        );
        check(pod(0, "PodInitializing", None), None);
        check(pod(4, "CrashLoopBackOff", Some("back-off")), None);
    }

    #[test]
    fn a_pod_that_found_no_node_says_so() {
        let told = told(json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
        }));
        assert_eq!((told.state.as_str(), told.ready), ("Unschedulable", (0, 2)));
    }
}
