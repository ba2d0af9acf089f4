//! Brings about what was decided.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use millrace_crds::InferenceService;
use millrace_crds::inference_service::AutoscalingMode;
use serde_json::json;

use super::build;
use super::check::{Checked, Refused};
use super::observe::Seen;
use super::scale::Scale;
use crate::apply::leave_replicas;
use crate::context::{Context, unless_away};
use crate::names::{FIELD_MANAGER, inference};
use crate::visit::{REJECTED, VisitError};

/// What a ReplicaSet goes by when it has to choose which pods go: the cheapest first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What came of applying.
pub struct Applied {
    /// The Deployment as it is now, or why there is none.
    pub deployment: Result<Deployment, Refused>,
}

/// Makes the service's objects, and takes jobs that are gone from its workers.
pub async fn apply(
    ctx: &Context,
    service: &InferenceService,
    checked: Result<Checked, Refused>,
    seen: &Seen,
    scale: &Scale,
) -> Result<Applied, VisitError> {
    let namespace = service.namespace().unwrap_or_default();
    let name = service.name_any();
    if !seen.gone.is_empty() {
        let registry = ctx.registry(&namespace, &name)?;
        for job in &seen.gone {
            unless_away(registry.remove(job).await)?;
        }
    }
    if let Err(refused) = checked {
        return Ok(Applied {
            deployment: Err(refused),
        });
    }
    ctx.leases.admit(&namespace).await?;
    let cache = ctx.cache.as_ref().filter(|_| service.spec.cache.enabled);
    if let Some(cache) = cache
        && let Err(error) = cache.admit(&namespace).await
    {
        // Answers that are not kept stop nobody.
        tracing::warn!(%error, "the cache's Redis does not take the users of a namespace");
    }
    let cache_url = cache.map(|cache| cache.url(&namespace));
    let leases_url = ctx.leases.url(&namespace);
    let leases = build::leases_secret(service, &leases_url, cache_url.as_deref());
    let made = make(ctx, service, seen, scale, leases).await;
    let deployment = match made.map_err(VisitError::Apply) {
        Err(ref error) if let Some(why) = error.rejection() => Err(Refused {
            reason: REJECTED,
            message: why.to_owned(),
        }),
        made => Ok(made?),
    };
    Ok(Applied { deployment })
}

/// Makes the service's objects, of which `leases` is the Secret that its pods have the leases from.
async fn make(
    ctx: &Context,
    service: &InferenceService,
    seen: &Seen,
    scale: &Scale,
    leases: Secret,
) -> Result<Deployment, kube::Error> {
    let namespace = service.namespace().unwrap_or_default();
    let name = service.name_any();
    let of_service = ctx.of_service(&namespace, &name);
    let (client, children) = (&ctx.client, &of_service.children);
    children
        .apply(client, &namespace, build::config_map(service))
        .await?;
    let is_missed = seen.is_leases_secret_missed;
    of_service
        .secret
        .apply(client, &namespace, leases, is_missed)
        .await?;
    children
        .apply(client, &namespace, build::kube_service(service))
        .await?;
    children
        .apply(client, &namespace, build::disruption_budget(service))
        .await?;
    let policy = build::network_policy(service, &ctx.options);
    children.apply(client, &namespace, policy).await?;
    let replicas = match scale.mode {
        AutoscalingMode::Backlog => {
            of_service.are_replicas_left.set(false);
            Some(scale.replicas)
        }
        AutoscalingMode::External => {
            if !of_service.are_replicas_left.is_set() {
                leave_replicas(client, &namespace, &inference(&name)).await?;
                of_service.are_replicas_left.set(true);
            }
            None
        }
    };
    price(ctx, &seen.pods, &scale.in_hand).await?;
    let deployment = build::deployment(service, replicas, &ctx.options);
    children.apply(client, &namespace, deployment).await
}

/// Marks each pod with the shards that it holds, so that those with the least go first when there are
/// to be fewer.
async fn price(ctx: &Context, pods: &[Pod], in_hand: &[(String, u32)]) -> Result<(), kube::Error> {
    for pod in pods {
        let name = pod.name_any();
        let Some((_, shards)) = in_hand.iter().find(|(holder, _)| *holder == name) else {
            continue;
        };
        let cost = shards.to_string();
        let before = pod.annotations().get(DELETION_COST).map(String::as_str);
        if before.unwrap_or("0") == cost {
            continue;
        }
        let api: Api<Pod> =
            Api::namespaced(ctx.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"annotations": {DELETION_COST: cost}}});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match api
            .patch_metadata(&name, &params, &Patch::Merge(patch))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
