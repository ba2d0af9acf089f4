//! Whether a service can run in a cluster, beyond what its schema says. Pure.

use millrace_crds::InferenceService;

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
    Ok(Checked(()))
}
