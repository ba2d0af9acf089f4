//! How many pods a service should have. Pure, with the clock handed in.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use millrace_crds::InferenceService;
use millrace_crds::inference_service::Autoscaling;

use super::observe::Seen;

/// Shards that one pod takes in hand at a time.
const SHARDS_PER_POD: u64 = 2;

/// How many pods there should be, and since when there has been nothing to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Pods that should serve.
    pub replicas: u32,
    /// Since when no shard has been open or leased.
    pub idle_since: Option<Time>,
    /// When the number may change although nothing happens.
    pub again_in: Option<Duration>,
}

/// Decides. While there is a backlog the number only grows, so that a tail does not make pods come
/// and go; once there is none for long enough it falls to the least.
pub fn decide(service: &InferenceService, seen: &Seen, now: Time) -> Scale {
    let Autoscaling {
        min_replicas,
        max_replicas,
        idle_seconds,
    } = service.spec.autoscaling;
    let status = service.status.as_ref();
    let current = status.and_then(|status| status.replicas);
    let current = current
        .unwrap_or(min_replicas)
        .clamp(min_replicas, max_replicas);
    if seen.backlog_shards > 0 || seen.is_planning {
        let wanted = seen.backlog_shards.div_ceil(SHARDS_PER_POD);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        return Scale {
            replicas: wanted.clamp(current, max_replicas),
            idle_since: None,
            again_in: None,
        };
    }
    let since = status.and_then(|status| status.idle_since.clone());
    let since = since.unwrap_or_else(|| now.clone());
    let idle = now.0.duration_since(since.0).as_secs().max(0) as u64;
    let rest = u64::from(idle_seconds).saturating_sub(idle);
    let is_asleep = rest == 0 || current == min_replicas;
    Scale {
        replicas: if is_asleep { min_replicas } else { current },
        idle_since: Some(since),
        again_in: (!is_asleep).then(|| Duration::from_secs(rest)),
    }
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

    fn replicas(service: InferenceService, backlog_shards: u64, now: i64) -> u32 {
        let seen = Seen {
            backlog_shards,
            ..Seen::default()
        };
        decide(&service, &seen, at(now)).replicas
    }

    #[test]
    fn a_backlog_brings_pods_up_to_the_most_and_a_tail_keeps_them() {
        assert_eq!(replicas(service(0, None), 1, 0), 1);
        assert_eq!(replicas(service(0, None), 100, 0), 4);
        assert_eq!(replicas(service(4, None), 1, 0), 4);
    }

    #[test]
    fn pods_go_only_after_the_idle_time() {
        assert_eq!(replicas(service(4, None), 0, 100), 4);
        assert_eq!(replicas(service(4, Some(100)), 0, 159), 4);
        assert_eq!(replicas(service(4, Some(100)), 0, 160), 0);
        assert_eq!(replicas(service(0, Some(100)), 1, 500), 1);
    }
}
