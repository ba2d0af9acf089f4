//! A model's folder, opened: its files held against each other before anything is computed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use millrace_crds::inference_service::{ModelSpec, Task};

use crate::config::{ConfigError, ModelConfig};
use crate::settings::{self, SettingsError};
use crate::source::{self, ModelFiles, SourceError};
use crate::tokenizer::{TextLimits, TextTokenizer, TokenizerError};

/// A model's folder, opened.
pub struct ModelFolder {
    /// Its files, with their digest.
    pub files: ModelFiles,
    /// Its shape.
    pub config: ModelConfig,
    /// Its tokeniser, cut to `max_length`.
    pub tokenizer: TextTokenizer,
    /// Longest text in tokens, special tokens included.
    pub max_length: usize,
    /// Whether embeddings are scaled to length 1.
    pub normalize: bool,
}

/// Why a model's folder was refused.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Its files cannot be used.
    #[error("the model's files cannot be used")]
    Source(#[from] SourceError),
    /// Its `config.json` was refused.
    #[error("the model's config.json was refused")]
    Config(#[from] ConfigError),
    /// Another of its settings was refused.
    #[error("the model's settings were refused")]
    Settings(#[from] SettingsError),
    /// Its tokeniser cannot be loaded.
    #[error("the model's tokenizer cannot be loaded")]
    Tokenizer(#[from] TokenizerError),
    /// Tokeniser and weights do not belong together.
    #[error(
        "tokenizer.json has {tokenizer} tokens, but the model embeds only {embeddings}: they do not \
         belong together"
    )]
    Vocabulary {
        /// Tokens of the tokeniser.
        tokenizer: usize,
        /// Rows of the word embeddings.
        embeddings: usize,
    },
}

impl FolderError {
    /// Whether opening the folder again cannot help: what its files say is at fault, not the moment.
    pub fn is_permanent(&self) -> bool {
        match self {
            FolderError::Source(error) => error.is_permanent(),
            FolderError::Config(error) => error.is_permanent(),
            FolderError::Settings(error) => error.is_permanent(),
            FolderError::Tokenizer(error) => error.is_permanent(),
            FolderError::Vocabulary { .. } => true,
        }
    }
}

impl ModelFolder {
    /// Opens the folder that `spec` names; `hf://owner/name` is looked up in `model_cache`.
    pub fn open(
        spec: &ModelSpec,
        model_cache: &Path,
        limits: TextLimits,
    ) -> Result<Self, FolderError> {
        let folder = source::resolve(&spec.source.uri, model_cache)?;
        let files = source::open(&folder, spec.task, spec.source.digest.as_deref())?;
        let config = ModelConfig::read(&files.config)?;
        let max_length = settings::max_length(spec, &files, &config)?;
        let normalize = settings::normalize(spec, &files)?;
        let with_spans = spec.task == Task::TokenClassification;
        let tokenizer = TextTokenizer::load(&files.tokenizer, max_length, with_spans, limits)?;
        let tokens = tokenizer.vocabulary_size();
        if tokens > config.vocab_size && spec.task != Task::TorchScript {
            return Err(FolderError::Vocabulary {
                tokenizer: tokens,
                embeddings: config.vocab_size,
            });
        }
        Ok(Self {
            files,
            config,
            tokenizer,
            max_length,
            normalize,
        })
    }
}

/// The model cache: `$MILLRACE_MODEL_CACHE`, else `millrace/models` in the user's cache folder,
/// `$XDG_CACHE_HOME` or `~/.cache`. Every program looks here, so that none of them disagree.
pub fn default_model_cache() -> PathBuf {
    model_cache(|name| std::env::var_os(name))
}

fn model_cache(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    // An empty variable counts as one that is not set.
    let folder = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    folder("MILLRACE_MODEL_CACHE").unwrap_or_else(|| {
        let home = || folder("HOME").unwrap_or_else(|| "/".into());
        folder("XDG_CACHE_HOME")
            .unwrap_or_else(|| home().join(".cache"))
            .join("millrace/models")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_cache_is_the_named_folder_or_in_the_users_cache() {
        let found = |variables: &[(&str, &str)]| {
            let value = |name: &str| variables.iter().find(|(known, _)| *known == name);
            model_cache(|name| value(name).map(|(_, value)| value.into()))
        };
        let home = ("HOME", "/home/ada");
        assert_eq!(
            found(&[home]),
            Path::new("/home/ada/.cache/millrace/models")
        );
        let xdg = ("XDG_CACHE_HOME", "/caches");
        assert_eq!(found(&[home, xdg]), Path::new("/caches/millrace/models"));
        let named = ("MILLRACE_MODEL_CACHE", "/models");
        assert_eq!(found(&[home, xdg, named]), Path::new("/models"));
        let empty = ("XDG_CACHE_HOME", "");
        assert_eq!(found(&[home, empty]), found(&[home]));
    }
}
