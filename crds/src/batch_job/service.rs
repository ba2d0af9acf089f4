//! Who does the work of a job: a service that it names, one of its own, or several.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BatchJobSpec;
use crate::inference_service::InferenceServiceSpec;

/// Names an InferenceService in the same namespace.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Name of the InferenceService.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Who does the work of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum JobService<'a> {
    /// An InferenceService that jobs share, by name. Of a job with routes, that of the first one.
    Shared(&'a str),
    /// One of the job's own.
    Own(&'a InferenceServiceSpec),
}

impl BatchJobSpec {
    /// The names of all services that jobs share and which this one names, each once: those of its
    /// routes in their order.
    pub fn services(&self) -> Vec<&str> {
        let routes = self.routes.iter().flatten();
        let answerers = routes.flat_map(|route| route.answerers());
        let routed = answerers.map(|(service, _)| &service.name);
        let mut services: Vec<&str> = Vec::new();
        for name in (self.service_ref.iter().map(|it| &it.name)).chain(routed) {
            if !services.contains(&name.as_str()) {
                services.push(name);
            }
        }
        services
    }

    /// Who does the work, of several services the first. The rules of the CRD see to it that there is
    /// one.
    pub fn service(&self) -> JobService<'_> {
        match (&self.service_ref, &self.service_template) {
            (None, Some(template)) => JobService::Own(template),
            (Some(named), _) => JobService::Shared(&named.name),
            (None, None) => JobService::Shared(self.services().first().copied().unwrap_or("")),
        }
    }
}
