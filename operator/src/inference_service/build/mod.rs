//! The objects of a service, one kind per file. Pure.

mod computes;
mod config_map;
mod deployment;
#[cfg(test)]
mod deployment_tests;
mod model_cache;
mod network;
mod remote;
mod requests;
mod runtime;
mod secret;

use kube::ResourceExt;
use kube::core::Resource;
use millrace_crds::InferenceService;
use serde_json::{Value, json};

pub use self::config_map::config_map;
pub use self::deployment::deployment;
pub use self::network::{disruption_budget, network_policy, service as kube_service};
pub use self::remote::secret as key_secret;
pub use self::secret::leases_secret;

use crate::apply::object;
use crate::names::{SERVICE_LABEL, labels};

/// Port for online requests.
pub const HTTP_PORT: u16 = 8080;

/// Port of the worker: probes and `/drain`.
pub const WORKER_PORT: u16 = 8081;

/// Port on which the pods answer online requests; that of the worker where nothing does.
fn serving_port(service: &InferenceService) -> u16 {
    let runtime = service.spec.runtime.as_ref();
    match runtime {
        Some(runtime) => runtime.port,
        None if service.spec.remote.is_some() => WORKER_PORT,
        None => HTTP_PORT,
    }
}

fn metadata(service: &InferenceService, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": service.namespace(),
        "labels": labels("inference", SERVICE_LABEL, &service.name_any()),
        "ownerReferences": [service.controller_owner_ref(&())],
    })
}

/// What selects the pods of the service.
fn selector(service: &InferenceService) -> Value {
    json!({SERVICE_LABEL: crate::names::label_value(&service.name_any())})
}
