//! The container of a foreign server, whose image the user brings. Pure.
//!
//! It runs with the same few rights as everything else, so the image must be fine with a user that
//! it does not know.

use millrace_crds::inference_service::{Runtime, Variable};
use serde_json::{Value, json};

use super::WORKER_PORT;
use super::computes::Given;
use crate::pods;

/// Home of the user that the server runs as, where most servers keep what they download.
const HOME: &str = "/home/server";

/// The folders that the server can write to. A user without rights can write to little else of an
/// image anyway, so a read-only root takes next to nothing from it and stands between an intruder
/// and what is left.
const WRITABLE: [(&str, &str); 2] = [("tmp", "/tmp"), ("home", HOME)];

/// The volumes that the server writes to.
pub fn volumes() -> Vec<Value> {
    let volume = |(name, _)| json!({"name": name, "emptyDir": {}});
    WRITABLE.map(volume).to_vec()
}

/// The server. When its image is pulled is Kubernetes' own default: the setting of the operator is
/// for images of this project.
pub fn server(runtime: &Runtime, computes: &Given) -> Value {
    let Runtime {
        image,
        command,
        args,
        env,
        port,
        protocol: _,
        ready_path: _,
        max_batch_size: _,
        models: _,
    } = runtime;
    let ready = json!({"path": runtime.ready_path(), "port": port});
    let drain = json!({"httpGet": {"path": "/drain", "port": WORKER_PORT}});
    let writable = WRITABLE.map(|(name, path)| json!({"name": name, "mountPath": path}));
    let mounts = [&writable[..], &computes.mounts].concat();
    json!({
        "name": "server",
        "image": image,
        "command": command,
        "args": args,
        "env": variables(env),
        "ports": [{"name": "http", "containerPort": port}],
        "lifecycle": {"preStop": drain},
        // It may first download its model.
        "startupProbe": {"httpGet": ready, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 1800},
        // Servers that compute on the thread that answers are slow to answer under load.
        "readinessProbe": {"httpGet": ready, "periodSeconds": 2, "timeoutSeconds": 5},
        "livenessProbe": {"httpGet": ready, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 30},
        "resources": computes.resources,
        "securityContext": pods::container_security(),
        "volumeMounts": mounts,
    })
}

fn variables(env: &[Variable]) -> Vec<Value> {
    let home = Variable {
        name: "HOME".to_owned(),
        value: HOME.to_owned(),
    };
    // The user's own word counts where there is one.
    let is_named = env.iter().any(|variable| variable.name == home.name);
    let home = (!is_named).then_some(&home);
    let variables = home.into_iter().chain(env);
    variables
        .map(|Variable { name, value }| json!({"name": name, "value": value}))
        .collect()
}
