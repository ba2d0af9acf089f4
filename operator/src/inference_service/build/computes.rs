//! What the template gives to the container that computes. Pure.

use millrace_crds::inference_service::{PodTemplate, ResourceClaim, Volume};
use serde_json::{Value, json};

/// What the container that computes gets, and what its pod must have for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// Resources of the container.
    pub resources: Value,
    /// Mounts of the container.
    pub mounts: Vec<Value>,
    /// Volumes of the pod.
    pub volumes: Vec<Value>,
    /// Claims of the pod.
    pub claims: Vec<Value>,
}

impl Given {
    /// What the template says.
    pub fn of(template: &PodTemplate) -> Self {
        let mut resources = json!(template.resources);
        let named = |claim: &ResourceClaim| json!({"name": claim.name});
        let claims: Vec<Value> = template.resource_claims.iter().map(named).collect();
        if !claims.is_empty() {
            resources["claims"] = json!(claims);
        }
        Self {
            resources,
            mounts: template.volumes.iter().map(mount).collect(),
            volumes: template.volumes.iter().map(volume).collect(),
            claims: template
                .resource_claims
                .iter()
                .map(|it| json!(it))
                .collect(),
        }
    }
}

/// Name of a volume in its pod, where there are others that no template names.
fn volume_name(volume: &Volume) -> String {
    format!("template-{}", volume.name)
}

fn mount(volume: &Volume) -> Value {
    json!({
        "name": volume_name(volume),
        "mountPath": volume.mount_path,
        "readOnly": volume.read_only,
    })
}

fn volume(volume: &Volume) -> Value {
    let Volume {
        name: _,
        mount_path: _,
        read_only: _,
        persistent_volume_claim,
        config_map,
        empty_dir,
    } = volume;
    json!({
        "name": volume_name(volume),
        "persistentVolumeClaim": persistent_volume_claim,
        "configMap": config_map,
        "emptyDir": empty_dir,
    })
}
