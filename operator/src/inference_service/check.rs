//! Whether a service can run in a cluster, beyond what its schema says. Pure.

use millrace_crds::InferenceService;

use super::build::WORKER_PORT;

/// Why a service does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// One word.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// Proof that a service can run in a cluster.
#[derive(Debug)]
pub struct Checked(());

/// Checks the service.
pub fn check(service: &InferenceService) -> Result<Checked, Refused> {
    for (index, model) in service.spec.models.iter().enumerate() {
        let uri = &model.source.uri;
        if !uri.starts_with("s3://") {
            return Err(Refused {
                reason: "SourceNotSupported",
                message: format!(
                    "spec.models[{index}].source.uri: in a cluster models are read from \
                     s3://bucket/path; copy the model's folder there"
                ),
            });
        }
    }
    if let Some(runtime) = &service.spec.runtime
        && runtime.port == WORKER_PORT
    {
        return Err(Refused {
            reason: "PortInUse",
            message: format!(
                "spec.runtime.port: the worker in the same pod listens on {WORKER_PORT}; let the \
                 server listen on another port"
            ),
        });
    }
    Ok(Checked(()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_foreign_server_cannot_take_the_workers_port() {
        let on = |port: u16| {
            let service = serde_json::from_value(json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService",
                "metadata": {"name": "service"},
                "spec": {"runtime": {
                    "image": "a", "port": port, "protocol": "TEI",
                    "models": [{"name": "m", "task": "Embedding"}],
                }},
            }));
            check(&service.unwrap()).map(|_| ())
        };
        assert_eq!(on(8080), Ok(()));
        assert_eq!(on(WORKER_PORT).unwrap_err().reason, "PortInUse");
    }
}
