//! The files of a model.

use std::path::PathBuf;

/// The files of a model, found and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// Folder that holds them.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// Safetensors files, or one TorchScript file.
    pub weights: Vec<PathBuf>,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// `1_Pooling/config.json`, where there is one.
    pub pooling_config: Option<PathBuf>,
    /// `modules.json`, where there is one.
    pub modules: Option<PathBuf>,
    /// `sha256:` and the digest of exactly these files.
    pub digest: String,
}
