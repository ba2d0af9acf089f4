//! A model's folder, opened: its files held against each other before anything is computed.

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

/// The model cache: `$MILLRACE_MODEL_CACHE`, else `millrace/models` in the user's cache folder.
pub fn default_model_cache() -> PathBuf {
    if let Some(folder) = std::env::var_os("MILLRACE_MODEL_CACHE") {
        return folder.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".cache")
        });
    cache.join("millrace/models")
}
