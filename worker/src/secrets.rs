//! Secrets: where they are, and what is in one. None is ever printed.

use std::fmt;
use std::path::PathBuf;

use millrace_crds::SecretKeyRef;

/// Key of certificate authorities' certificates, which are trusted beside those of the image, in the Secret
/// with what a server is asked with.
pub const AUTHORITIES: &str = "ca.crt";

/// Where secrets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secrets {
    /// In the environment.
    Environment,
    /// In a folder with one folder per mounted Secret, named like it.
    Folder(PathBuf),
}

/// What a secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose {
    /// The field that names it.
    pub field: &'static str,
    /// Its key in the Secret, where the field names none.
    pub key: &'static str,
    /// The variable that holds it for a local run, unless the same one with `_` and the Secret's name
    /// does, as where there are several.
    pub variable: &'static str,
}

/// A secret is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// In the environment.
    #[error("{field}: a local run takes it from {own} or {variable}; set one of them")]
    Variable {
        /// The field that names it.
        field: &'static str,
        /// The variable of this Secret alone.
        own: String,
        /// The variable of all of this purpose.
        variable: &'static str,
    },
    /// In a Secret.
    #[error("{field}: the Secret {name:?} has no key {key:?}")]
    Key {
        /// The field that names it.
        field: &'static str,
        /// Name of the Secret.
        name: String,
        /// Key in it.
        key: String,
    },
}

impl Secrets {
    /// The secret that `named` names.
    pub fn find(&self, purpose: Purpose, named: &SecretKeyRef) -> Result<Secret, SecretError> {
        let Purpose {
            field,
            key,
            variable,
        } = purpose;
        match self {
            Secrets::Environment => {
                let own = variable_of(variable, &named.name);
                let given = |name: &str| {
                    let value = std::env::var(name).ok();
                    let value = value.filter(|it| !it.trim().is_empty())?;
                    let variable = name.to_owned();
                    Some(Secret(Source::Given { value, variable }))
                };
                let secret = given(&own).or_else(|| given(variable));
                secret.ok_or(SecretError::Variable {
                    field,
                    own,
                    variable,
                })
            }
            Secrets::Folder(_) => {
                let key = named.key.as_deref().unwrap_or(key);
                let file = self.beside(named, key).ok_or_else(|| SecretError::Key {
                    field,
                    name: named.name.clone(),
                    key: key.to_owned(),
                })?;
                Ok(Secret(Source::File(file)))
            }
        }
    }

    /// The file of another key of the Secret that `named` names, if that has one.
    pub fn beside(&self, named: &SecretKeyRef, key: &str) -> Option<PathBuf> {
        match self {
            Secrets::Environment => None,
            Secrets::Folder(folder) => {
                let path = folder.join(&named.name).join(key);
                path.is_file().then_some(path)
            }
        }
    }
}

/// The variable of one Secret among several of the same purpose: `MILLRACE_API_KEY_OPEN_AI` of the
/// Secret `open-ai`.
fn variable_of(variable: &str, secret: &str) -> String {
    let name = secret.to_ascii_uppercase().replace(['-', '.'], "_");
    format!("{variable}_{name}")
}

/// A secret. Not printable.
#[derive(Clone)]
pub struct Secret(Source);

#[derive(Clone)]
enum Source {
    Given {
        value: String,
        variable: String,
    },
    /// Read for each use, since a Secret may be changed while it is mounted.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The variable that holds it, if one does.
    pub fn variable(&self) -> Option<&str> {
        match &self.0 {
            Source::Given { value: _, variable } => Some(variable),
            Source::File(_) => None,
        }
    }

    /// The secret as it is now. One that was taken away is empty, and whoever is asked with it says
    /// that it is missed.
    pub fn value(&self) -> String {
        let value = match &self.0 {
            Source::Given { value, variable: _ } => value.clone(),
            Source::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
        };
        value.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_of_several_has_a_variable() {
        assert_eq!(variable_of("KEY", "open-ai.eu"), "KEY_OPEN_AI_EU");
    }

    #[test]
    fn a_secret_is_read_anew_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("openai")).unwrap();
        let file = folder.path().join("openai/apiKey");
        std::fs::write(&file, "sk-one\n").unwrap();
        let secrets = Secrets::Folder(folder.path().to_owned());
        let purpose = Purpose {
            field: "spec.remote.apiKeySecretRef",
            key: "apiKey",
            variable: "NO_SUCH_VARIABLE",
        };
        let named = |key: Option<&str>| SecretKeyRef {
            name: "openai".to_owned(),
            key: key.map(str::to_owned),
        };
        let secret = secrets.find(purpose, &named(None)).unwrap();
        assert_eq!(secret.value(), "sk-one");
        std::fs::write(&file, "sk-two").unwrap();
        assert_eq!(secret.value(), "sk-two");
        assert!(!format!("{secret:?}").contains("sk-"));
        let missing = secrets.find(purpose, &named(Some("other"))).unwrap_err();
        assert!(missing.to_string().contains("\"other\""), "{missing}");
        let unset = Secrets::Environment.find(purpose, &named(None));
        let unset = unset.unwrap_err().to_string();
        let both = "NO_SUCH_VARIABLE_OPENAI or NO_SUCH_VARIABLE;";
        assert!(unset.contains(both), "{unset}");
        let variable = "PATH".to_owned();
        let value = "sk-three".to_owned();
        let given = Secret(Source::Given { value, variable });
        assert_eq!((given.variable(), secret.variable()), (Some("PATH"), None));
    }
}
