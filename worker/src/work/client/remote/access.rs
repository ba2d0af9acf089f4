//! By what right an API is asked: its key, the limits that its callers share, and the answers that it
//! need not be asked for.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use millrace_crds::inference_service;

use super::ApiError;
use crate::metrics::Metrics;
use crate::secrets::{AUTHORITIES, Purpose, Secret, Secrets};
use crate::store::LinkLocal;
use crate::work::call::{Caches, Gates};

/// The key of an API.
const KEY: Purpose = Purpose {
    field: "spec.remote.apiKeySecretRef",
    key: "apiKey",
    variable: "MILLRACE_API_KEY",
};

/// What a Secret holds for an API.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Its key.
    pub key: Option<Secret>,
    /// File with the authorities of its certificate, trusted beside those of the image.
    pub authorities: Option<PathBuf>,
}

impl Credentials {
    /// What the Secret holds that the service names.
    pub fn find(spec: &inference_service::Remote, secrets: &Secrets) -> Result<Self, ApiError> {
        let Some(named) = &spec.api_key_secret_ref else {
            return Ok(Self::default());
        };
        let key = secrets.find(KEY, named);
        Ok(Self {
            key: Some(key.map_err(|error| ApiError::Unusable(error.to_string()))?),
            authorities: secrets.beside(named, AUTHORITIES),
        })
    }
}

/// What whoever asks an API has to have.
#[derive(Clone)]
pub struct Access {
    /// Where keys are.
    pub secrets: Secrets,
    /// The limits, shared by all who ask.
    pub gates: Arc<Gates>,
    /// The answers that are kept.
    pub caches: Arc<Caches>,
    /// What is counted of calls.
    pub metrics: Metrics,
    /// Whether addresses of the machine's own link may be asked.
    pub link_local: LinkLocal,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}
