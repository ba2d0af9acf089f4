//! Server-side apply of children, and of nothing that is already as it should be.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::Resource as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::names::{FIELD_MANAGER, REPLICAS_MANAGER};
use crate::objects::Namespaced;
use crate::visit::note_change;

/// Annotation with the hash of what was applied last.
const APPLIED: &str = "millrace.dev/applied";

/// A child as it is written in the code that makes it.
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("what is written here has the shape of its kind")
}

/// The children of an object that this process applied, as they were after that.
#[derive(Debug, Default)]
pub struct Children {
    /// By kind and name: a digest of what is ours of the child.
    ours: Mutex<HashMap<String, String>>,
    touches: AtomicU64,
}

impl Children {
    /// Applies `child`, unless the same was applied last and everything in it is still as it was
    /// applied. Returns it as it is in the cluster.
    pub async fn apply<K: Namespaced>(
        &self,
        client: &Client,
        namespace: &str,
        mut child: K,
    ) -> Result<K, kube::Error> {
        let api: Api<K> = Api::namespaced(client.clone(), namespace);
        let name = child.name_any();
        let key = format!("{}/{name}", K::kind(&()));
        let hash = digest(&child)?;
        let there = api.get_opt(&name).await?;
        if let Some(there) = &there
            && there.annotations().get(APPLIED) == Some(&hash)
            && self.ours().get(&key) == Some(&ours(there)?)
        {
            return Ok(there.clone());
        }
        child.annotations_mut().insert(APPLIED.to_owned(), hash);
        let applied = apply_unseen(client, namespace, &child).await?;
        // A process that knows nothing yet of what another one applied mostly says it again.
        if there.is_none_or(|there| there.resource_version() != applied.resource_version()) {
            note_change::<K>(&name);
        }
        let ours = ours(&applied)?;
        self.ours().insert(key, ours);
        Ok(applied)
    }

    /// Forgets them, which costs one more write for each child that is still needed.
    pub fn forget(&self) {
        self.ours().clear();
    }

    /// Notes that some child may not be as it was any more.
    pub fn touch(&self) {
        self.touches.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a child was touched. Who looked at one after asking this knows, while it stays the same,
    /// that it is as it was.
    pub fn touches(&self) -> u64 {
        self.touches.load(Ordering::Relaxed)
    }

    fn ours(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A digest of what is ours of an object.
fn ours<K: Resource>(object: &K) -> Result<String, kube::Error> {
    digest(&our_fields(object))
}

/// What the API server notes as ours of an object: whoever changes or takes away a field of it takes
/// the field off this list.
fn our_fields<K: Resource>(object: &K) -> Option<&FieldsV1> {
    let entries = object.meta().managed_fields.iter().flatten();
    let mut ours = entries.filter(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.is_none()
    });
    ours.next()?.fields_v1.as_ref()
}

/// What becomes of the number of pods of a Deployment that is left to others.
#[derive(Debug, PartialEq, Eq)]
struct LeftReplicas {
    replicas: i32,
    /// Whether whoever has changed it meanwhile is overruled.
    is_forced: bool,
}

/// What the number of pods of a Deployment is left at, if it is ours: as it is, or one.
fn left_replicas(there: &Deployment) -> Option<LeftReplicas> {
    let ours = our_fields(there)?;
    ours.0.pointer("/f:spec/f:replicas")?;
    let replicas = there.spec.replicas;
    Some(LeftReplicas {
        // Few autoscalers wake what sleeps, and one that can puts it to sleep again.
        replicas: replicas.map_or(1, |replicas| replicas.max(1)),
        // Not where the number stays: who has changed it since has it already.
        is_forced: replicas == Some(0),
    })
}

/// Gives up the number of pods of a Deployment, if it is ours, and leaves it to others: a field that nobody
/// applies any more would fall back to its default, so another name applies it until somebody changes it.
pub async fn leave_replicas(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(), kube::Error> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let there = api.get_opt(name).await?;
    let Some(LeftReplicas {
        replicas,
        is_forced,
    }) = there.as_ref().and_then(left_replicas)
    else {
        return Ok(());
    };
    let left = json!({
        "apiVersion": Deployment::API_VERSION, "kind": Deployment::KIND,
        "metadata": {"name": name}, "spec": {"replicas": replicas},
    });
    let mut params = PatchParams::apply(REPLICAS_MANAGER);
    params.force = is_forced;
    api.patch(name, &params, &Patch::Apply(left)).await?;
    Ok(())
}

/// A digest of what a value is as JSON.
pub fn digest(value: &impl Serialize) -> Result<String, kube::Error> {
    let json = serde_json::to_vec(value).map_err(kube::Error::SerdeError)?;
    Ok(data_encoding::HEXLOWER.encode(&Sha256::digest(json)[..16]))
}

/// Applies `child` without looking at what is there: for Secrets, which the operator has no right
/// to read.
pub async fn apply_unseen<K: Namespaced>(
    client: &Client,
    namespace: &str,
    child: &K,
) -> Result<K, kube::Error> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&child.name_any(), &params, &Patch::Apply(child))
        .await
}

/// Writes the status of `object`, which was `before`. Not by server-side apply: what a visit writes
/// that saw less must be refused, which the resource version does.
pub async fn write_status<K: Namespaced>(
    client: &Client,
    object: &K,
    before: &impl Serialize,
    after: &impl Serialize,
) -> Result<(), kube::Error> {
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let patch = json!({
        "metadata": {"resourceVersion": object.resource_version()},
        "status": merged(json!(before), json!(after)),
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let name = object.name_any();
    api.patch_status(&name, &params, &Patch::Merge(patch))
        .await?;
    note_change::<K>(&name);
    Ok(())
}

/// Merging leaves out what is not named, so what is no more must be named.
fn merged(before: Value, mut after: Value) -> Value {
    if let (Value::Object(before), Value::Object(after)) = (before, &mut after) {
        for gone in before.into_iter().map(|(key, _)| key) {
            after.entry(gone).or_insert(Value::Null);
        }
    }
    after
}

/// Deletes a child and what it owns; its absence is all that matters.
pub async fn delete<K: Namespaced>(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(), kube::Error> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => {
            note_change::<K>(name);
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_somebody_else_took_is_no_longer_ours() {
        let deployment = |fields: Value, theirs: Value| -> Deployment {
            object(json!({"metadata": {"managedFields": [
                {"manager": "kubectl", "operation": "Update", "fieldsV1": theirs},
                {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields},
                {"manager": FIELD_MANAGER, "operation": "Update", "subresource": "status"},
            ]}, "spec": {"selector": {}, "template": {}}}))
        };
        let replicas = json!({"f:spec": {"f:replicas": {}, "f:template": {}}});
        let applied = ours(&deployment(replicas.clone(), json!({}))).unwrap();
        let labelled = deployment(replicas, json!({"f:metadata": {"f:labels": {"f:a": {}}}}));
        assert_eq!(ours(&labelled).unwrap(), applied);
        let scaled = json!({"f:spec": {"f:template": {}}});
        let scaled = deployment(scaled, json!({"f:spec": {"f:replicas": {}}}));
        assert_ne!(ours(&scaled).unwrap(), applied);
    }

    #[test]
    fn the_number_of_pods_is_left_as_it_is_if_it_is_ours_and_what_sleeps_is_woken() {
        let left = |manager: &str, replicas: Option<i32>| {
            let fields = json!({"f:spec": {"f:replicas": {}, "f:template": {}}});
            let deployment: Deployment = object(json!({
                "metadata": {"managedFields": [
                    {"manager": manager, "operation": "Apply", "fieldsV1": fields},
                    {"manager": FIELD_MANAGER, "operation": "Update", "subresource": "status"},
                ]},
                "spec": {"replicas": replicas, "selector": {}, "template": {}},
            }));
            left_replicas(&deployment).map(|left| (left.replicas, left.is_forced))
        };
        assert_eq!(left(FIELD_MANAGER, Some(3)), Some((3, false)));
        assert_eq!(left(FIELD_MANAGER, None), Some((1, false)));
        assert_eq!(left(FIELD_MANAGER, Some(0)), Some((1, true)));
        assert_eq!(left(REPLICAS_MANAGER, Some(0)), None);
    }

    #[test]
    fn what_a_status_no_longer_has_is_taken_away() {
        let before = json!({"progress": "10%", "eta": "soon"});
        let after = json!({"progress": "100%"});
        assert_eq!(
            merged(before, after),
            json!({"progress": "100%", "eta": null})
        );
    }
}
