//! Whose lines the logs of a job are: which containers of which pods, in which order. Pure.

use clap::ValueEnum;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;

use super::workers::containers;

/// Label that holds which step a pod runs.
const COMPONENT_LABEL: &str = "app.kubernetes.io/component";

/// A step of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// The pod that lists and cuts the input.
    Plan,
    /// The pods of the service.
    Work,
    /// The pod that verifies the commits and writes the manifest.
    Finish,
}

/// A container that has something to say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Name of its pod.
    pub pod: String,
    /// Its name.
    pub container: String,
    /// How often it was started before: each time its lines begin anew.
    pub restarts: i32,
}

/// The containers that began, those of the plan first, then those of the service, then those of the
/// finish; in each the oldest pods first. Without a step, all of them.
pub fn sources(step_pods: &[Pod], service_pods: &[Pod], step: Option<Step>) -> Vec<Source> {
    let of_component =
        |component: &'static str| step_pods.iter().filter(move |pod| is(pod, component));
    let mut found = Vec::new();
    let wanted = |one: Step| step.is_none_or(|step| step == one);
    if wanted(Step::Plan) {
        found.extend(begun(of_component("plan")));
    }
    if wanted(Step::Work) {
        found.extend(begun(service_pods));
    }
    if wanted(Step::Finish) {
        found.extend(begun(of_component("finish")));
    }
    found
}

fn is(pod: &Pod, component: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|it| it.get(COMPONENT_LABEL))
        .is_some_and(|it| it == component)
}

fn begun<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Source> {
    let mut pods: Vec<&Pod> = pods.into_iter().collect();
    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|it| it.0));
    let of_pod = |pod: &&'a Pod| {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let begun = containers(pod).filter(|it| has_begun(it));
        let source = |container: &ContainerStatus| Source {
            pod: name.clone(),
            container: container.name.clone(),
            restarts: container.restart_count,
        };
        begun.map(source).collect::<Vec<_>>()
    };
    pods.iter().flat_map(of_pod).collect()
}

fn has_begun(container: &ContainerStatus) -> bool {
    let is_begun = |state: &k8s_openapi::api::core::v1::ContainerState| {
        state.running.is_some() || state.terminated.is_some()
    };
    container.state.as_ref().is_some_and(is_begun)
        || container.last_state.as_ref().is_some_and(is_begun)
}

/// Whether the source is among the containers of its pod that run.
pub fn runs(pod: &Pod, source: &Source) -> bool {
    containers(pod).any(|container| {
        let state = container.state.as_ref();
        container.name == source.container
            && container.restart_count == source.restarts
            && state.is_some_and(|state| state.running.is_some())
    })
}

/// A line as the API server gives it: its time, and what was said. A line without a time is the rest
/// of one that was cut.
pub fn parsed(line: &str) -> (Option<Timestamp>, &str) {
    let stamped = line
        .split_once(' ')
        .and_then(|(at, said)| Some((at.parse().ok()?, said)));
    match stamped {
        Some((at, said)) => (Some(at), said),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, component: &str, created: &str, statuses: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "creationTimestamp": created,
                "labels": {COMPONENT_LABEL: component},
            },
            "status": statuses,
        }))
        .unwrap()
    }

    fn container(name: &str, state: Value) -> Value {
        json!({
            "name": name, "ready": true, "restartCount": 0, "image": "i", "imageID": "i",
            "state": state,
        })
    }

    fn named(found: &[Source]) -> Vec<String> {
        let name = |source: &Source| format!("{}/{}", source.pod, source.container);
        found.iter().map(name).collect()
    }

    #[test]
    fn the_steps_come_in_their_order_and_init_containers_first() {
        let early = "2026-01-02T03:00:00Z";
        let late = "2026-01-02T03:05:00Z";
        let one =
            |name: &str| json!({"containerStatuses": [container(name, json!({"running": {}}))]});
        let steps = [
            pod("finish-1", "finish", late, one("step")),
            pod("plan-2", "plan", late, one("step")),
            pod("plan-1", "plan", early, one("step")),
        ];
        let serving = json!({
            "initContainerStatuses": [container("worker", json!({"running": {}}))],
            "containerStatuses": [
                container("server", json!({"waiting": {"reason": "PodInitializing"}})),
            ],
        });
        let service = [pod("minilm-1", "inference", early, serving)];
        let all = named(&sources(&steps, &service, None));
        assert_eq!(
            all,
            [
                "plan-1/step",
                "plan-2/step",
                "minilm-1/worker",
                "finish-1/step"
            ]
        );
        let work = named(&sources(&steps, &service, Some(Step::Work)));
        assert_eq!(work, ["minilm-1/worker"]);
    }

    #[test]
    fn a_container_that_was_started_again_is_another_source() {
        let running = json!({"containerStatuses": [container("step", json!({"running": {}}))]});
        let pod = pod("plan-1", "plan", "2026-01-02T03:00:00Z", running);
        let source = |restarts| Source {
            pod: "plan-1".to_owned(),
            container: "step".to_owned(),
            restarts,
        };
        assert!(runs(&pod, &source(0)));
        assert!(!runs(&pod, &source(1)));
    }

    #[test]
    fn a_line_is_told_apart_from_its_time() {
        let (at, said) = parsed("2026-01-02T03:04:05.678901234Z two words");
        assert_eq!(said, "two words");
        assert!(at.is_some());
        assert_eq!(parsed("no time here"), (None, "no time here"));
    }
}
