//! Writes the status, once and only when it changed.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use millrace_crds::{InferenceService, InferenceServiceStatus};
use serde_json::json;

use super::apply::Applied;
use super::check::Refused;
use super::observe::Seen;
use super::scale::Scale;
use crate::apply::write_status;
use crate::conditions::{Is, Said, written};
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
        Ok(_) => status.ready_replicas == status.replicas,
        // Whoever rejects may think better of it without an event.
        Err(refused) => refused.reason != REJECTED,
    };
    if status == before {
        return Ok(is_up);
    }
    let mut written = json!(status);
    if status.idle_since.is_none() {
        // Merging leaves out what is not named, so what ends must be named.
        written["idleSince"] = serde_json::Value::Null;
    }
    write_status(&ctx.client, service, written)
        .await
        .map_err(VisitError::Report)?;
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
        Err(_) => 0,
    };
    let said = match deployment {
        Err(refused) => conditions(Is::False, false, refused.reason, &refused.message),
        Ok(_) if scale.replicas == 0 && ready == 0 => {
            let message = "asleep: no job waits; the next one wakes the service";
            conditions(Is::True, false, "Asleep", message)
        }
        Ok(_) if ready == scale.replicas => {
            conditions(Is::True, false, "Serving", &format!("{ready} pods serve"))
        }
        Ok(deployment) => {
            let progress = format!("{ready} of {} pods serve", scale.replicas);
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
        url: Some(format!("http://{host}.{namespace}.svc")),
        replicas: Some(scale.replicas),
        ready_replicas: Some(ready),
        idle_since: scale.idle_since.clone(),
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
