//! How many pods a service should have. Pure, with the clock handed in.
//!
//! Up: as many as the backlog keeps busy for longer than they take to come up, and as many as the
//! tightest deadline needs. Down: one by one in the tail, once a pod has had no shard for long
//! enough, and to the least once there is no work at all. While shards are open the number never
//! falls, so that pods do not come and go.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use millrace_crds::InferenceService;
use millrace_crds::inference_service::{Autoscaling, AutoscalingMode};
use millrace_protocol::registry::WorkerReport;

use super::observe::{Seen, Work};

/// Shards that one pod takes in hand at a time.
const SHARDS_PER_POD: u64 = 2;

/// Least time that a pod should have work for, in seconds.
const WORTHWHILE_SECONDS: f64 = 20.0;

/// A pod that is asked for should have work for this many times the time that it takes to come up.
const COLD_STARTS: f64 = 2.0;

/// How often workers are asked in the tail of the work.
const TAIL: Duration = Duration::from_secs(5);

/// How many pods there should be, and since when there has been nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Pods that should serve.
    pub replicas: u32,
    /// Whether the operator sets that number, or says it only.
    pub mode: AutoscalingMode,
    /// Since when no shard has been open or leased.
    pub idle_since: Option<Time>,
    /// How long a pod took to come up.
    pub cold_start_seconds: Option<u32>,
    /// Tokens per second of one pod.
    pub tokens_per_second: Option<f64>,
    /// In the tail, the shards that each pod holds: those with the least go first.
    pub in_hand: Vec<(String, u32)>,
    /// When the number may change although nothing happens.
    pub again_in: Option<Duration>,
}

/// Decides.
pub fn decide(service: &InferenceService, seen: &Seen, now: Time) -> Scale {
    let Autoscaling {
        mode,
        min_replicas,
        max_replicas,
        idle_seconds,
    } = service.spec.autoscaling;
    let status = service.status.clone().unwrap_or_default();
    let current = status.replicas.unwrap_or(min_replicas);
    let current = current.clamp(min_replicas, max_replicas);
    let workers = seen.workers.as_deref().unwrap_or_default();
    let measured = tokens_per_second(workers);
    let cold_start = seen.pods.iter().filter_map(cold_start_seconds).max();
    let scale = Scale {
        replicas: current,
        mode,
        idle_since: None,
        cold_start_seconds: cold_start.or(status.cold_start_seconds),
        tokens_per_second: measured.or(status.tokens_per_second),
        in_hand: Vec::new(),
        again_in: None,
    };
    let backlog = seen.backlog_shards();
    if backlog > 0 || seen.is_planning {
        let wanted = wanted(seen, &scale).max(1).max(min_replicas);
        let in_hand: u64 = workers
            .iter()
            .map(|(_, it)| u64::from(it.shards_in_hand))
            .sum();
        let is_tail = backlog > 0 && backlog <= in_hand && !seen.is_planning;
        return match is_tail {
            true => tail(scale, seen, current, &service.spec.autoscaling),
            false => Scale {
                replicas: wanted
                    .clamp(current, max_replicas.max(current))
                    .min(max_replicas),
                ..scale
            },
        };
    }
    let since = status.idle_since.unwrap_or_else(|| now.clone());
    let idle = now.0.duration_since(since.0).as_secs().max(0) as u64;
    let rest = u64::from(idle_seconds).saturating_sub(idle);
    let is_asleep = rest == 0 || current == min_replicas;
    Scale {
        replicas: if is_asleep { min_replicas } else { current },
        idle_since: Some(since),
        again_in: (!is_asleep).then(|| Duration::from_secs(rest)),
        ..scale
    }
}

/// As many pods as there is work for.
fn wanted(seen: &Seen, scale: &Scale) -> u32 {
    let by_shards = seen.backlog_shards().div_ceil(SHARDS_PER_POD) as f64;
    let cold_start = f64::from(scale.cold_start_seconds.unwrap_or(0));
    // Seconds that one pod alone would take.
    let alone = |work: &Work| Some(work.tokens? / scale.tokens_per_second.filter(|it| *it > 0.0)?);
    let mut total = Some(0.0);
    let mut by_deadline: f64 = 0.0;
    for work in &seen.work {
        total = total.zip(alone(work)).map(|(total, one)| total + one);
        if let (Some(one), Some(left)) = (alone(work), work.deadline_seconds) {
            by_deadline = by_deadline.max(one / (left - cold_start).max(1.0));
        }
    }
    let worthwhile = (cold_start * COLD_STARTS).max(WORTHWHILE_SECONDS);
    let wanted = match total {
        Some(total) => (total / worthwhile).max(by_deadline).min(by_shards),
        // Nothing is measured yet.
        None => by_shards,
    };
    wanted.ceil() as u32
}

/// The end of the work: all shards are in hand. Pods that have had none for long enough go one by one,
/// the next once the last is on its way: by then those that stay may have taken a shard. What counts are
/// the pods that are there and stay: those that are on their way out have been taken off already,
/// whatever they last said of themselves.
fn tail(scale: Scale, seen: &Seen, current: u32, autoscaling: &Autoscaling) -> Scale {
    let Autoscaling {
        mode: _,
        min_replicas,
        max_replicas: _,
        idle_seconds,
    } = *autoscaling;
    let live = seen
        .pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let live: Vec<String> = live.map(ResourceExt::name_any).collect();
    let workers = seen.workers.iter().flatten();
    let workers: Vec<_> = workers.filter(|(pod, _)| live.contains(pod)).collect();
    let is_spare =
        |report: &WorkerReport| report.shards_in_hand == 0 && report.idle_seconds >= idle_seconds;
    let spare = workers.iter().filter(|(_, report)| is_spare(report));
    let stay = (live.len() - spare.count()) as u32;
    let is_one_to_go = live.len() as u32 > current;
    let replicas = if is_one_to_go {
        current
    } else {
        current.min(stay).max(current.saturating_sub(1))
    };
    let in_hand = workers
        .iter()
        .map(|(pod, report)| (pod.clone(), report.shards_in_hand));
    Scale {
        replicas: replicas.max(min_replicas).max(1),
        in_hand: in_hand.collect(),
        again_in: Some(TAIL),
        ..scale
    }
}

/// What one pod does, by those that have something to do; to two digits, since it is a status.
fn tokens_per_second(workers: &[(String, WorkerReport)]) -> Option<f64> {
    let busy = workers
        .iter()
        .filter(|(_, report)| report.shards_in_hand > 0);
    let rates: Vec<f64> = busy.filter_map(|(_, it)| it.tokens_per_second).collect();
    if rates.is_empty() {
        return None;
    }
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let unit = 10_f64.powf(mean.log10().floor() - 1.0);
    (mean > 0.0).then(|| (mean / unit).round() * unit)
}

/// How long a pod took until it served; nothing for one whose containers were started again, since it
/// became ready once more by that.
fn cold_start_seconds(pod: &Pod) -> Option<u32> {
    let status = pod.status.as_ref()?;
    let of_start = status.init_container_statuses.iter().flatten();
    let mut containers = of_start.chain(status.container_statuses.iter().flatten());
    if containers.any(|container| container.restart_count > 0) {
        return None;
    }
    let conditions = status.conditions.as_ref()?;
    let ready = conditions.iter().find(|it| it.type_ == "Ready")?;
    let created = pod.creation_timestamp()?;
    let ready_at = ready.last_transition_time.as_ref()?;
    if ready.status != "True" {
        return None;
    }
    u32::try_from(ready_at.0.duration_since(created.0).as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap())
    }

    fn service(replicas: u32, idle_since: Option<i64>) -> InferenceService {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "default"},
            "spec": {
                "models": [],
                "autoscaling": {"minReplicas": 0, "maxReplicas": 4, "idleSeconds": 60},
            },
            "status": {"replicas": replicas, "idleSince": idle_since.map(at)},
        }))
        .unwrap()
    }

    fn work(shards: u64) -> Work {
        Work {
            shards,
            ..Work::default()
        }
    }

    fn replicas(service: InferenceService, backlog_shards: u64, now: i64) -> u32 {
        let seen = Seen {
            work: vec![work(backlog_shards)],
            ..Seen::default()
        };
        decide(&service, &seen, at(now)).replicas
    }

    fn worker(pod: &str, shards_in_hand: u32, idle_seconds: u32) -> (String, WorkerReport) {
        let report = WorkerReport {
            shards_in_hand,
            idle_seconds,
            tokens_per_second: Some(100.0),
            cache: None,
        };
        (pod.to_owned(), report)
    }

    #[test]
    fn a_backlog_brings_pods_up_to_the_most_and_a_tail_keeps_them() {
        assert_eq!(replicas(service(0, None), 1, 0), 1);
        assert_eq!(replicas(service(0, None), 100, 0), 4);
        assert_eq!(replicas(service(4, None), 1, 0), 4);
    }

    #[test]
    fn a_pod_whose_server_was_started_again_does_not_count_as_slow_to_come_up() {
        let pod = |restarts: i32| -> Pod {
            let containers = json!([{
                "name": "server", "image": "i", "imageID": "", "ready": true,
                "restartCount": restarts,
            }]);
            let ready = json!([{
                "type": "Ready", "status": "True", "lastTransitionTime": at(10_030),
            }]);
            serde_json::from_value(json!({
                "metadata": {"name": "pod", "creationTimestamp": at(10_000)},
                "status": {"conditions": ready, "containerStatuses": containers},
            }))
            .unwrap()
        };
        assert_eq!(cold_start_seconds(&pod(0)), Some(30));
        assert_eq!(cold_start_seconds(&pod(1)), None);
    }

    #[test]
    fn pods_go_only_after_the_idle_time() {
        assert_eq!(replicas(service(4, None), 0, 100), 4);
        assert_eq!(replicas(service(4, Some(100)), 0, 159), 4);
        assert_eq!(replicas(service(4, Some(100)), 0, 160), 0);
        assert_eq!(replicas(service(0, Some(100)), 1, 500), 1);
    }

    #[test]
    fn a_pod_is_asked_for_only_if_it_has_work_for_longer_than_it_takes_to_come_up() {
        let replicas = |tokens, cold_start| {
            let mut service = service(0, None);
            let status = service.status.as_mut().unwrap();
            status.tokens_per_second = Some(100.0);
            status.cold_start_seconds = Some(cold_start);
            let seen = Seen {
                work: vec![Work {
                    tokens: Some(tokens),
                    ..work(100)
                }],
                ..Seen::default()
            };
            decide(&service, &seen, at(0)).replicas
        };
        assert_eq!(replicas(1_000.0, 30), 1, "10 s of work");
        assert_eq!(replicas(12_000.0, 30), 2, "two minutes of work");
        assert_eq!(replicas(12_000.0, 300), 1, "it would be done before");
        assert_eq!(replicas(1e9, 300), 4, "never more than the most");
    }

    #[test]
    fn a_deadline_brings_as_many_pods_as_it_needs() {
        let replicas = |deadline_seconds| {
            let mut service = service(1, None);
            let status = service.status.as_mut().unwrap();
            status.tokens_per_second = Some(100.0);
            status.cold_start_seconds = Some(300);
            let seen = Seen {
                work: vec![Work {
                    tokens: Some(60_000.0),
                    deadline_seconds,
                    ..work(100)
                }],
                ..Seen::default()
            };
            decide(&service, &seen, at(0)).replicas
        };
        assert_eq!(replicas(None), 1);
        assert_eq!(replicas(Some(1_000.0)), 1);
        assert_eq!(replicas(Some(500.0)), 3);
    }

    fn pod(name: &str, deleted_at: Option<i64>) -> Pod {
        let metadata = json!({"name": name, "deletionTimestamp": deleted_at.map(at)});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn in_the_tail() -> Seen {
        Seen {
            work: vec![work(3)],
            workers: Some(vec![
                worker("a", 2, 0),
                worker("b", 0, 61),
                worker("c", 1, 0),
                worker("d", 0, 10),
            ]),
            pods: ["a", "b", "c", "d"].map(|name| pod(name, None)).to_vec(),
            ..Seen::default()
        }
    }

    #[test]
    fn in_the_tail_pods_without_shards_go_and_those_with_shards_are_spared() {
        let seen = in_the_tail();
        let scale = decide(&service(4, None), &seen, at(0));
        assert_eq!(scale.replicas, 3);
        let in_hand = [("a", 2), ("b", 0), ("c", 1), ("d", 0)];
        let in_hand = in_hand.map(|(pod, shards)| (pod.to_owned(), shards));
        assert_eq!(scale.in_hand, in_hand);
        let seen = Seen {
            work: vec![work(30)],
            ..seen
        };
        let scale = decide(&service(4, None), &seen, at(0));
        assert_eq!(scale.replicas, 4, "open shards are for whoever is there");
    }

    #[test]
    fn a_pod_that_has_nothing_to_do_is_taken_off_once() {
        let mut seen = in_the_tail();
        let mut replicas = 4;
        for _ in 0..3 {
            replicas = decide(&service(replicas, None), &seen, at(0)).replicas;
            assert_eq!(replicas, 3, "nothing has happened since");
        }
        // What it said of itself is remembered for a while after it is told to go.
        seen.pods[1] = pod("b", Some(0));
        assert_eq!(decide(&service(3, None), &seen, at(0)).replicas, 3);
        seen.pods.remove(1);
        assert_eq!(decide(&service(3, None), &seen, at(0)).replicas, 3);
    }

    #[test]
    fn of_several_pods_that_have_nothing_to_do_one_goes_at_a_time() {
        let mut seen = in_the_tail();
        seen.workers.as_mut().unwrap()[3] = worker("d", 0, 61);
        let replicas = |seen: &Seen, current| decide(&service(current, None), seen, at(0)).replicas;
        assert_eq!(replicas(&seen, 4), 3);
        assert_eq!(replicas(&seen, 3), 3, "the first is still there");
        seen.pods[1] = pod("b", Some(0));
        assert_eq!(replicas(&seen, 3), 2, "and then the next");
        seen.pods[3] = pod("d", Some(0));
        assert_eq!(replicas(&seen, 2), 2, "those that work stay");
    }
}
