//! Server-side apply of children, and of nothing that is already as it should be.

use std::fmt::Debug;

use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::names::FIELD_MANAGER;
use crate::visit::note_change;

/// Annotation with the hash of what was applied last.
const APPLIED: &str = "millrace.dev/applied";

/// A child as it is written in the code that makes it.
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("what is written here has the shape of its kind")
}

/// Applies `child`, unless the same was applied last and the child is still there. Returns it as it
/// is in the cluster.
pub async fn apply<K>(client: &Client, namespace: &str, mut child: K) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let name = child.name_any();
    let json = serde_json::to_vec(&child).map_err(kube::Error::SerdeError)?;
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(json)[..16]);
    if let Some(there) = api.get_opt(&name).await?
        && there.annotations().get(APPLIED) == Some(&hash)
    {
        return Ok(there);
    }
    child.annotations_mut().insert(APPLIED.to_owned(), hash);
    note_change::<K>(&name);
    apply_unseen(client, namespace, &child).await
}

/// Applies `child` without looking at what is there: for Secrets, which the operator has no right
/// to read.
pub async fn apply_unseen<K>(client: &Client, namespace: &str, child: &K) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&child.name_any(), &params, &Patch::Apply(child))
        .await
}

/// Writes the status of `object`, which was `before`. Not by server-side apply: what a visit writes
/// that saw less must be refused, which the resource version does.
pub async fn write_status<K>(
    client: &Client,
    object: &K,
    before: &impl Serialize,
    after: &impl Serialize,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
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
pub async fn delete<K>(client: &Client, namespace: &str, name: &str) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
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
    fn what_a_status_no_longer_has_is_taken_away() {
        let before = json!({"progress": "10%", "eta": "soon"});
        let after = json!({"progress": "100%"});
        assert_eq!(
            merged(before, after),
            json!({"progress": "100%", "eta": null})
        );
    }
}
