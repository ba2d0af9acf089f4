//! Reads the InferenceService that says which models to serve.

use std::path::{Path, PathBuf};

use millrace_crds::inference_service::{InferenceService, InferenceServiceSpec};

/// Why a service file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceFileError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not an InferenceService.
    #[error("{} is not an InferenceService: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// The spec in `path`, with relative model folders made absolute from the file's own folder.
pub fn read(path: &Path) -> Result<InferenceServiceSpec, ServiceFileError> {
    let unreadable = |source| ServiceFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let invalid = |message| ServiceFileError::Invalid {
        path: path.to_owned(),
        message,
    };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let folder = std::path::absolute(path).map_err(unreadable)?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    // JSON is YAML, so one parser reads both.
    let service = serde_saphyr::from_str::<InferenceService>(&text)
        .map_err(|error| invalid(error.to_string()))?;
    let mut spec = service.spec;
    if spec.models.is_empty() {
        return Err(invalid("spec.models is empty".into()));
    }
    for (index, model) in spec.models.iter().enumerate() {
        if spec.models[..index]
            .iter()
            .any(|other| other.name == model.name)
        {
            return Err(invalid(format!("spec.models names {:?} twice", model.name)));
        }
    }
    for model in &mut spec.models {
        absolute_uri(&mut model.source.uri, folder);
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

    const HEAD: &str =
        "apiVersion: millrace.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: s}\n";

    #[test]
    fn a_relative_folder_is_found_beside_the_file() {
        let models = "spec: {models: [{name: m, task: Embedding, source: {uri: models/m}}]}";
        let spec = check(&format!("{HEAD}{models}")).unwrap();
        assert!(spec.models[0].source.uri.starts_with('/'));
        assert!(spec.models[0].source.uri.ends_with("/models/m"));
    }

    #[test]
    fn uris_and_absolute_folders_stay_as_they_are() {
        for uri in ["hf://owner/name", "file:///models/m", "/models/m"] {
            let models = format!(
                "spec: {{models: [{{name: m, task: Embedding, source: {{uri: {uri:?}}}}}]}}"
            );
            assert_eq!(
                check(&format!("{HEAD}{models}")).unwrap().models[0]
                    .source
                    .uri,
                uri
            );
        }
    }

    #[test]
    fn two_models_of_one_name_are_refused() {
        let model = "{name: m, task: Embedding, source: {uri: /m}}";
        let error = check(&format!("{HEAD}spec: {{models: [{model}, {model}]}}")).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }

    #[test]
    fn a_file_that_is_something_else_is_refused_by_name() {
        let error = check("hello: world").unwrap_err();
        assert!(error.to_string().contains("service.yaml"), "{error}");
    }
}
