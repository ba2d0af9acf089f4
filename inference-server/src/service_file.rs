//! Reads the InferenceService that says which models to serve.

use std::path::{Path, PathBuf};

use millrace_crds::{
    inference_service::InferenceServiceSpec,
    manifest::{Manifest, ManifestError, read_path},
};

/// Why a service file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceFileError {
    /// The file cannot be read or breaks a rule of the API.
    #[error("the service cannot be read")]
    Manifest(#[from] ManifestError),
    /// The file holds no service, or several.
    #[error("{} holds {found} InferenceServices, expected one", path.display())]
    NotOneService {
        /// The file.
        path: PathBuf,
        /// Services in it.
        found: usize,
    },
    /// The service has no models for this server.
    #[error("{} has no models, but spec.runtime or spec.remote: there is nothing to serve", path.display())]
    NoModels {
        /// The file.
        path: PathBuf,
    },
    /// The file's own folder is unknown.
    #[error("{} has no absolute path", path.display())]
    NoFolder {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The spec in `path`, with relative model folders made absolute from the file's own folder. Other
/// kinds in the file are passed over.
pub fn read(path: &Path) -> Result<InferenceServiceSpec, ServiceFileError> {
    let no_folder = |source| ServiceFileError::NoFolder {
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(no_folder)?;
    let folder = if absolute.is_dir() {
        Some(absolute.as_path())
    } else {
        absolute.parent()
    };
    let mut services = Vec::new();
    for manifest in read_path(path)? {
        match manifest {
            Manifest::InferenceService(service) => services.push(service.spec),
            Manifest::BatchJob(_) => {}
        }
    }
    let found = services.len();
    let (Some(mut spec), 1) = (services.pop(), found) else {
        return Err(ServiceFileError::NotOneService {
            path: path.to_owned(),
            found,
        });
    };
    if spec.runtime.is_some() || spec.remote.is_some() {
        let path = path.to_owned();
        return Err(ServiceFileError::NoModels { path });
    }
    for model in &mut spec.models {
        absolute_uri(&mut model.source.uri, folder.unwrap_or(Path::new("/")));
    }
    Ok(spec)
}

/// Joins a relative path to `folder`; URIs and absolute paths stay as they are.
fn absolute_uri(uri: &mut String, folder: &Path) {
    if !uri.contains("://") && !uri.starts_with('/') {
        *uri = folder.join(&*uri).to_string_lossy().into_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(yaml: &str) -> Result<InferenceServiceSpec, ServiceFileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service.yaml");
        std::fs::write(&path, yaml).unwrap();
        read(&path)
    }

    fn service(models: &str) -> String {
        let head = "apiVersion: millrace.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: s}";
        format!("{head}\nspec: {{models: [{models}]}}\n")
    }

    #[test]
    fn a_relative_folder_is_found_beside_the_file() {
        let models = "{name: m, task: Embedding, source: {uri: models/m}}";
        let spec = check(&service(models)).unwrap();
        assert!(spec.models[0].source.uri.starts_with('/'));
        assert!(spec.models[0].source.uri.ends_with("/models/m"));
    }

    #[test]
    fn uris_and_absolute_folders_stay_as_they_are() {
        for uri in ["hf://owner/name", "file:///models/m", "/models/m"] {
            let models = format!("{{name: m, task: Embedding, source: {{uri: {uri:?}}}}}");
            assert_eq!(check(&service(&models)).unwrap().models[0].source.uri, uri);
        }
    }

    #[test]
    fn a_file_that_breaks_a_rule_is_refused_by_name() {
        for yaml in ["hello: world", &service("")] {
            let error = check(yaml).unwrap_err();
            let source = std::error::Error::source(&error).unwrap();
            assert!(source.to_string().contains("service.yaml"), "{source}");
        }
    }

    #[test]
    fn a_service_that_brings_its_own_server_is_refused() {
        let runtime = "image: a, port: 80, protocol: TEI, models: [{name: m, task: Embedding}]";
        let yaml = service("").replace("models: []", &format!("runtime: {{{runtime}}}"));
        let refused = check(&yaml);
        assert!(matches!(refused, Err(ServiceFileError::NoModels { .. })));
    }

    #[test]
    fn a_file_with_two_services_is_refused() {
        let one = service("{name: m, task: Embedding, source: {uri: /m}}");
        let two = format!("{one}---\n{}", one.replace("{name: s}", "{name: t}"));
        assert!(matches!(
            check(&two),
            Err(ServiceFileError::NotOneService { found: 2, .. })
        ));
    }
}
