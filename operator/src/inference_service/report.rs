//! Writes the status, once and only when it changed, and an Event where the service moved on.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::events::EventType;
use millrace_crds::inference_service::AutoscalingMode;
use millrace_crds::{InferenceService, InferenceServiceStatus};

use super::answers;
use super::apply::Applied;
use super::check::Refused;
use super::observe::Seen;
use super::scale::Scale;
use crate::apply::write_status;
use crate::conditions::{Is, Said, find, written};
use crate::context::Context;
use crate::names::inference;
use crate::visit::{REJECTED, VisitError};

/// Writes the status if it changed. Returns whether as many pods serve as should, or none can.
pub async fn report(
    ctx: &Context,
    service: &InferenceService,
    seen: &Seen,
    scale: &Scale,
    applied: Applied,
) -> Result<bool, VisitError> {
    let before = service.status.clone().unwrap_or_default();
    let status = status(service, seen, scale, &applied.deployment, ctx.now());
    let is_up = match &applied.deployment {
        Ok(deployment) => status.ready_replicas == Some(asked_for(deployment, scale)),
        // Whoever rejects may think better of it without an event.
        Err(refused) => refused.reason != REJECTED,
    };
    if status == before {
        return Ok(is_up);
    }
    write_status(&ctx.client, service, &before, &status)
        .await
        .map_err(VisitError::Report)?;
    if let Some(ready) = find(&status.conditions, "Ready")
        && find(&before.conditions, "Ready").is_none_or(|before| before.reason != ready.reason)
    {
        let kind = match &applied.deployment {
            Ok(_) => EventType::Normal,
            Err(_) => EventType::Warning,
        };
        ctx.say(service, kind, &ready.reason, &ready.message).await;
    }
    Ok(is_up)
}

/// The status after a visit. Pure.
fn status(
    service: &InferenceService,
    seen: &Seen,
    scale: &Scale,
    deployment: &Result<Deployment, Refused>,
    now: Time,
) -> InferenceServiceStatus {
    let before = service.status.clone().unwrap_or_default();
    let generation = service.metadata.generation.unwrap_or_default();
    let ready = match deployment {
        Ok(deployment) => ready_replicas(deployment),
        // The pods of the spec before serve on.
        Err(_) => seen.ready_pods(),
    };
    let said = match deployment {
        Err(refused) => conditions(Is::False, false, refused.reason, &refused.message),
        Ok(deployment) if asked_for(deployment, scale) == 0 && ready == 0 => {
            let message = "asleep: no job waits; the next one wakes the service";
            conditions(Is::True, false, "Asleep", message)
        }
        Ok(deployment) if ready == asked_for(deployment, scale) => {
            let message = match ready {
                1 => "1 pod serves".to_owned(),
                _ => format!("{ready} pods serve"),
            };
            conditions(Is::True, false, "Serving", &message)
        }
        Ok(deployment) => {
            let progress = format!("{ready} of {} pods serve", asked_for(deployment, scale));
            let message = match stuck(deployment).or_else(|| seen.pods_wait_for.clone()) {
                Some(reason) => format!("{progress}; {reason}"),
                None => progress,
            };
            conditions(Is::False, true, "Scaling", &message)
        }
    };
    let host = inference(&service.name_any());
    let namespace = service.namespace().unwrap_or_default();
    InferenceServiceStatus {
        conditions: written(said, &before.conditions, generation, now),
        observed_generation: Some(generation),
        // Whoever asks an API elsewhere asks it there.
        url: (service.spec.remote.is_none()).then(|| format!("http://{host}.{namespace}.svc")),
        replicas: Some(scale.replicas),
        ready_replicas: Some(ready),
        idle_since: scale.idle_since.clone(),
        cold_start_seconds: scale.cold_start_seconds,
        tokens_per_second: scale.tokens_per_second,
        cache: (service.spec.cache.enabled)
            .then(|| answers::known(before.cache, seen.workers.as_deref().unwrap_or_default()))
            .flatten(),
    }
}

/// Pods that the Deployment is asked for, by us or by somebody else.
fn asked_for(deployment: &Deployment, scale: &Scale) -> u32 {
    match scale.mode {
        AutoscalingMode::Backlog => scale.replicas,
        AutoscalingMode::External => {
            u32::try_from(deployment.spec.replicas.unwrap_or(1)).unwrap_or(0)
        }
    }
}

fn ready_replicas(deployment: &Deployment) -> u32 {
    let status = deployment.status.as_ref();
    let ready = status.and_then(|status| status.ready_replicas);
    u32::try_from(ready.unwrap_or(0)).unwrap_or(0)
}

/// Why the Deployment does not get on, such as a quota or Pod Security that refuses its pods.
fn stuck(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failed = conditions.iter().find(|it| {
        it.type_.as_deref() == Some("ReplicaFailure") && it.status.as_deref() == Some("True")
    })?;
    failed.message.clone()
}

fn conditions(ready: Is, is_moving: bool, reason: &'static str, message: &str) -> Vec<Said> {
    let flag = |yes| if yes { Is::True } else { Is::False };
    let said = |kind, is| Said {
        kind,
        is,
        reason,
        message: message.to_owned(),
    };
    vec![
        said("Ready", ready),
        said("Reconciling", flag(is_moving)),
        said("Stalled", flag(ready == Is::False && !is_moving)),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service() -> InferenceService {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
            "metadata": {"name": "service", "namespace": "default", "generation": 2},
            "spec": {"models": [], "autoscaling": {"minReplicas": 2, "maxReplicas": 2}},
        }))
        .unwrap()
    }

    fn pod(ready: &str, deleted_at: Value) -> k8s_openapi::api::core::v1::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "pod", "deletionTimestamp": deleted_at},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn deployment(ready: u32, conditions: Value) -> Deployment {
        let status = json!({"readyReplicas": ready, "conditions": conditions});
        let spec = json!({"replicas": 2, "selector": {}, "template": {}});
        serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
    }

    fn status_with(seen: &Seen, deployment: Result<Deployment, Refused>) -> InferenceServiceStatus {
        let now = Time(k8s_openapi::jiff::Timestamp::from_second(1).unwrap());
        let scale = crate::inference_service::scale::decide(&service(), seen, now.clone());
        status(&service(), seen, &scale, &deployment, now)
    }

    fn ready_message(status: &InferenceServiceStatus) -> (String, String) {
        let ready = find(&status.conditions, "Ready").unwrap();
        (ready.reason.clone(), ready.message.clone())
    }

    #[test]
    fn pods_that_serve_on_are_counted_though_the_spec_is_refused() {
        let seen = Seen {
            pods: vec![
                pod("True", Value::Null),
                pod("False", Value::Null),
                pod("True", json!("2026-01-01T00:00:00Z")),
            ],
            ..Seen::default()
        };
        let refused = Refused {
            reason: REJECTED,
            message: "a quota".to_owned(),
        };
        let status = status_with(&seen, Err(refused));
        assert_eq!(status.ready_replicas, Some(1));
        let expected = (REJECTED.to_owned(), "a quota".to_owned());
        assert_eq!(ready_message(&status), expected);
    }

    #[test]
    fn what_keeps_pods_from_being_made_is_said_before_what_pods_wait_for() {
        let seen = Seen {
            pods_wait_for: Some("ImagePullBackOff: no such image".to_owned()),
            is_planning: true,
            ..Seen::default()
        };
        let message = |conditions| {
            let status = status_with(&seen, Ok(deployment(1, conditions)));
            ready_message(&status)
        };
        let said = |why: &str| ("Scaling".to_owned(), format!("1 of 2 pods serve; {why}"));
        let failure = |status| {
            json!([
                {"type": "Available", "status": "False", "message": "too few"},
                {"type": "ReplicaFailure", "status": status, "message": "exceeded quota"},
            ])
        };
        assert_eq!(message(failure("True")), said("exceeded quota"));
        let waits = said("ImagePullBackOff: no such image");
        assert_eq!(message(failure("False")), waits);
        assert_eq!(message(Value::Null), waits);
    }
}
