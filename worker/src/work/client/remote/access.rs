//! By what right an API is asked: its key, and the limits that its callers share.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use millrace_crds::inference_service::SecretKeyRef;

use crate::store::LinkLocal;
use crate::work::call::Gate;

/// The variable with the key of a local run.
const KEY_VARIABLE: &str = "MILLRACE_API_KEY";

/// What whoever asks an API has to have.
#[derive(Clone)]
pub struct Access {
    /// Where keys are.
    pub keys: Keys,
    /// The limits, shared by all who ask.
    pub gate: Arc<Gate>,
    /// Whether addresses of the machine's own link may be asked.
    pub link_local: LinkLocal,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

/// Where keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// In the environment.
    Environment,
    /// In a folder with one folder per mounted Secret.
    Secrets(PathBuf),
}

/// A key is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// In the environment.
    #[error("spec.remote.apiKeySecretRef: a local run takes the key from {KEY_VARIABLE}; set it")]
    Variable,
    /// In a Secret.
    #[error("spec.remote.apiKeySecretRef: the Secret {name:?} has no key {key:?}")]
    Secret {
        /// Name of the Secret.
        name: String,
        /// Key in it.
        key: String,
    },
}

impl Keys {
    /// The key that the service names, if it names one.
    pub fn find(&self, named: Option<&SecretKeyRef>) -> Result<ApiKey, KeyError> {
        let Some(SecretKeyRef { name, key }) = named else {
            return Ok(ApiKey(Source::None));
        };
        match self {
            Keys::Environment => match std::env::var(KEY_VARIABLE) {
                Ok(value) if !value.trim().is_empty() => Ok(ApiKey(Source::Given(value))),
                _ => Err(KeyError::Variable),
            },
            Keys::Secrets(folder) => {
                let path = folder.join(name).join(key);
                match path.is_file() {
                    true => Ok(ApiKey(Source::File(path))),
                    false => Err(KeyError::Secret {
                        name: name.clone(),
                        key: key.clone(),
                    }),
                }
            }
        }
    }
}

/// A key. Not printable.
#[derive(Clone)]
pub struct ApiKey(Source);

#[derive(Clone)]
enum Source {
    None,
    Given(String),
    /// Read for each call, since a Secret may be changed while it is mounted.
    File(PathBuf),
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

impl ApiKey {
    /// The key as it is now; `None` if calls carry none.
    pub fn value(&self) -> Option<String> {
        let value = match &self.0 {
            Source::None => return None,
            Source::Given(value) => value.clone(),
            // Without it the API says that it misses the key.
            Source::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
        };
        Some(value.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_anew_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("openai")).unwrap();
        let file = folder.path().join("openai/apiKey");
        std::fs::write(&file, "sk-one\n").unwrap();
        let keys = Keys::Secrets(folder.path().to_owned());
        let named = |key: &str| SecretKeyRef {
            name: "openai".to_owned(),
            key: key.to_owned(),
        };
        let key = keys.find(Some(&named("apiKey"))).unwrap();
        assert_eq!(key.value().as_deref(), Some("sk-one"));
        std::fs::write(&file, "sk-two").unwrap();
        assert_eq!(key.value().as_deref(), Some("sk-two"));
        assert!(!format!("{key:?}").contains("sk-"));
        assert!(keys.find(Some(&named("other"))).is_err());
        assert_eq!(keys.find(None).unwrap().value(), None);
    }
}
