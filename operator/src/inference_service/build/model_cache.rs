//! The volume in which fetched models lie. Pure.

use millrace_crds::inference_service::ModelCache;
use serde_json::{Value, json};

/// One that outlives the pod if the service has a cache, and one that goes with the pod if not.
pub fn volume(cache: Option<&ModelCache>) -> Value {
    let Some(ModelCache {
        persistent_volume_claim,
        host_path,
    }) = cache
    else {
        return json!({"name": "models", "emptyDir": {}});
    };
    let host_path = host_path.as_ref();
    let host_path = host_path.map(|path| json!({"path": path, "type": "Directory"}));
    json!({
        "name": "models",
        "persistentVolumeClaim": persistent_volume_claim,
        "hostPath": host_path,
    })
}
