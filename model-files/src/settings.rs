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

/// Longest text in tokens: the spec's, else what the model's files say, within its positions.
pub fn max_length(
    spec: &ModelSpec,
    files: &ModelFiles,
    config: &ModelConfig,
) -> Result<usize, SettingsError> {
    let reach = config.tokens_max();
    if let Some(asked) = spec.max_length.map(|length| length as usize) {
        return if asked <= reach { Ok(asked) } else { Err(SettingsError::TooLong { asked, reach }) };
    }
    let told = [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")];
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
    let types = modules.as_array().into_iter().flatten().filter_map(|module| module["type"].as_str());
    Ok(types.into_iter().any(|name| name.ends_with("Normalize")))
}

fn read(path: &Path) -> Result<Value, SettingsError> {
    serde_json::from_slice(&source::read_json(path)?).map_err(|error| SettingsError::Invalid {
        path: path.display().to_string(),
        message: error.to_string(),
    })
}
