//! What a model's own files say where the spec says nothing.

use std::path::Path;

use millrace_crds::inference_service::ModelSpec;
use serde_json::Value;

use crate::config::ModelConfig;
use crate::source::{self, ModelFiles, SourceError};

/// `model_max_length` of tokenizers that know no bound is an astronomical number.
const SANE_LENGTH_MAX: u64 = 1 << 20;

/// Why a setting was refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("a settings file cannot be read")]
    Source(#[from] SourceError),
    /// A file is not JSON.
    #[error("{path} is not JSON: {message}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The spec asks for more than the model has.
    #[error("maxLength {asked} is more than the {reach} tokens that the model's positions reach")]
    TooLong {
        /// Length asked for.
        asked: usize,
        /// Longest sequence of the model.
        reach: usize,
    },
}

impl SettingsError {
    /// Whether reading the files again cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            SettingsError::Source(error) => error.is_permanent(),
            SettingsError::Invalid { .. } | SettingsError::TooLong { .. } => true,
        }
    }
}

/// Longest text in tokens: the spec's, else what the model's files say, within its positions.
pub fn max_length(
    spec: &ModelSpec,
    files: &ModelFiles,
    config: &ModelConfig,
) -> Result<usize, SettingsError> {
    let reach = config.tokens_max();
    if let Some(asked) = spec.max_length.map(|length| length as usize) {
        return if asked <= reach {
            Ok(asked)
        } else {
            Err(SettingsError::TooLong { asked, reach })
        };
    }
    let told = [
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ];
    for (file, field) in told {
        let path = files.folder.join(file);
        if !path.is_file() {
            continue;
        }
        if let Some(length) = read(&path)?.get(field).and_then(Value::as_u64)
            && (1..=SANE_LENGTH_MAX).contains(&length)
        {
            return Ok((length as usize).min(reach));
        }
    }
    Ok(reach)
}

/// Whether embeddings are scaled to length 1: the spec's word, else whether `modules.json` names a
/// Normalize module, else yes.
pub fn normalize(spec: &ModelSpec, files: &ModelFiles) -> Result<bool, SettingsError> {
    if let Some(normalize) = spec.normalize {
        return Ok(normalize);
    }
    let Some(path) = &files.modules else {
        return Ok(true);
    };
    let modules = read(path)?;
    let types = modules
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|module| module["type"].as_str());
    Ok(types.into_iter().any(|name| name.ends_with("Normalize")))
}

fn read(path: &Path) -> Result<Value, SettingsError> {
    serde_json::from_slice(&source::read_json(path)?).map_err(|error| SettingsError::Invalid {
        path: path.display().to_string(),
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A folder with the given files, a model whose positions reach `positions`, and a spec with
    /// `more` in it.
    struct Scene {
        _folder: tempfile::TempDir,
        files: ModelFiles,
        config: ModelConfig,
        spec: ModelSpec,
    }

    fn scene(written: &[(&str, Value)], model_type: &str, more: Value) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        for (name, json) in written {
            std::fs::write(folder.path().join(name), json.to_string()).unwrap();
        }
        let config = json!({
            "model_type": model_type, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 10,
            "max_position_embeddings": 514,
        });
        let mut spec = json!({"name": "m", "task": "Embedding", "source": {"uri": "/m"}});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let modules = folder.path().join("modules.json");
        let files = ModelFiles {
            folder: folder.path().to_owned(),
            config: folder.path().join("config.json"),
            weights: Vec::new(),
            tokenizer: folder.path().join("tokenizer.json"),
            pooling_config: None,
            modules: modules.is_file().then_some(modules),
            digest: String::new(),
        };
        Scene {
            _folder: folder,
            files,
            config: ModelConfig::parse(config.to_string().as_bytes()).unwrap(),
            spec: serde_json::from_value(spec).unwrap(),
        }
    }

    fn length(written: &[(&str, Value)], model_type: &str, more: Value) -> Result<usize, String> {
        let Scene {
            _folder,
            files,
            config,
            spec,
        } = scene(written, model_type, more);
        max_length(&spec, &files, &config).map_err(|error| error.to_string())
    }

    #[test]
    fn the_length_is_the_specs_then_the_files_then_the_positions() {
        let sentence = ("sentence_bert_config.json", json!({"max_seq_length": 256}));
        let tokenizer = ("tokenizer_config.json", json!({"model_max_length": 128}));
        let both = [sentence, tokenizer.clone()];
        assert_eq!(length(&both, "bert", json!({"maxLength": 64})), Ok(64));
        assert_eq!(length(&both, "bert", json!({})), Ok(256));
        assert_eq!(length(&[tokenizer], "bert", json!({})), Ok(128));
        assert_eq!(length(&[], "bert", json!({})), Ok(514));
        assert_eq!(length(&[], "roberta", json!({})), Ok(512));
        assert_eq!(length(&[], "mpnet", json!({})), Ok(512));
    }

    #[test]
    fn a_length_without_meaning_is_passed_over() {
        for value in [json!(1e30), json!(0), json!(null), json!("long")] {
            let file = ("tokenizer_config.json", json!({"model_max_length": value}));
            assert_eq!(length(&[file], "bert", json!({})), Ok(514));
        }
    }

    #[test]
    fn no_file_leads_past_the_positions_and_a_spec_that_does_is_refused() {
        let file = ("sentence_bert_config.json", json!({"max_seq_length": 8192}));
        assert_eq!(length(&[file], "roberta", json!({})), Ok(512));
        let error = length(&[], "roberta", json!({"maxLength": 513})).unwrap_err();
        assert!(error.contains("513") && error.contains("512"), "{error}");
    }

    #[test]
    fn vectors_are_normalised_where_the_modules_say_so_or_are_not_there() {
        let normalized = |written: &[(&str, Value)], more| {
            let Scene {
                _folder,
                files,
                spec,
                ..
            } = scene(written, "bert", more);
            normalize(&spec, &files).unwrap()
        };
        let modules = |last: &str| {
            (
                "modules.json",
                json!([{"type": "a.Pooling"}, {"type": last}]),
            )
        };
        assert!(normalized(&[], json!({})));
        assert!(normalized(
            &[modules("sentence_transformers.models.Normalize")],
            json!({})
        ));
        assert!(!normalized(
            &[modules("sentence_transformers.models.Dense")],
            json!({})
        ));
        assert!(!normalized(&[], json!({"normalize": false})));
        assert!(normalized(
            &[modules("a.Dense")],
            json!({"normalize": true})
        ));
    }
}
