//! A loaded model: tokeniser, backend, and what its task makes of the numbers.

use std::path::PathBuf;
use std::time::Duration;

use millrace_crds::inference_service::{Activation, ModelSpec, Task};
use millrace_protocol::row::RowError;
use millrace_protocol::wire::Prediction;

use crate::backend::{Backend, Head};
use crate::config::{ModelConfig, ProblemType};
use crate::fake::{self, FakeBackend, FakeOptions};
use crate::prediction::{self, Finish};
use crate::folder::{FolderError, ModelFolder};
use crate::source::ModelFiles;
use crate::tokenizer::{TextLimits, TextTokenizer, check_chars};

pub use crate::tokenizer::Encoding;

/// How models are loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Folder in which `hf://owner/name` is looked up.
    pub model_cache: PathBuf,
    /// Threads that a model may compute with.
    pub threads: usize,
    /// Whether TorchScript modules, which run their author's code, may be loaded.
    pub allow_torchscript: bool,
    /// Most characters of a text; more are refused before tokenising.
    pub text_chars_max: usize,
    /// Longest time that tokenising one text may take.
    pub tokenize_deadline: Duration,
    /// What computes.
    pub backend: BackendChoice,
}

/// What computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendChoice {
    /// libtorch, on a GPU where there is one.
    Torch,
    /// The deterministic stand-in for tests.
    Fake(FakeOptions),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its folder was refused.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its weights cannot be loaded.
    #[cfg(feature = "torch")]
    #[error("the model's weights cannot be loaded")]
    Torch(#[from] crate::torch::TorchLoadError),
    /// This build cannot compute models.
    #[error("this build has no libtorch: build it with the torch feature")]
    NoTorch,
}

/// A model that answers.
pub struct Model {
    name: String,
    task: Task,
    digest: String,
    dtype: &'static str,
    device: String,
    max_length: usize,
    tokens: Tokens,
    finish: Finish,
    backend: Box<dyn Backend>,
}

/// What makes token ids.
enum Tokens {
    Text(TextTokenizer),
    Fake { options: FakeOptions, text_chars_max: usize },
}

impl Model {
    /// Loads a model. Blocks while its files are read.
    pub fn load(spec: &ModelSpec, options: &LoadOptions) -> Result<Model, LoadError> {
        match &options.backend {
            BackendChoice::Fake(fake) => Ok(Self::fake(spec, fake, options.text_chars_max)),
            BackendChoice::Torch => Self::from_files(spec, options),
        }
    }

    fn fake(spec: &ModelSpec, options: &FakeOptions, text_chars_max: usize) -> Model {
        let labels = spec.labels.clone().unwrap_or_else(|| match spec.task {
            Task::TokenClassification => ["O", "B-FAKE", "I-FAKE"].map(str::to_owned).to_vec(),
            _ => ["negative", "positive"].map(str::to_owned).to_vec(),
        });
        let backend = FakeBackend::new(options.clone(), labels.len());
        Model {
            name: spec.name.clone(),
            task: spec.task,
            digest: "fake".to_owned(),
            dtype: "Float32",
            device: "fake".to_owned(),
            max_length: fake::MAX_LENGTH,
            tokens: Tokens::Fake { options: options.clone(), text_chars_max },
            finish: finish(spec, labels, spec.normalize.unwrap_or(true), None),
            backend: Box::new(backend),
        }
    }

    fn from_files(spec: &ModelSpec, options: &LoadOptions) -> Result<Model, LoadError> {
        let limits = TextLimits {
            text_chars_max: options.text_chars_max,
            tokenize_deadline: options.tokenize_deadline,
        };
        let ModelFolder { files, config, tokenizer, max_length, normalize } =
            ModelFolder::open(spec, &options.model_cache, limits)?;
        let labels = spec.labels.clone().unwrap_or_else(|| config.labels.clone());
        let Computing { backend, dtype, device } = computing(&files, &config, spec, options)?;
        Ok(Model {
            name: spec.name.clone(),
            task: spec.task,
            digest: files.digest,
            dtype,
            device,
            max_length,
            tokens: Tokens::Text(tokenizer),
            finish: finish(spec, labels, normalize, config.problem_type),
            backend,
        })
    }

    /// Name by which steps and requests call the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the model does.
    pub fn task(&self) -> Task {
        self.task
    }

    /// `sha256:` and the digest of the model's files.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Number format that was chosen, as the API writes it.
    pub fn dtype(&self) -> &str {
        self.dtype
    }

    /// Where the model runs, such as `cpu` or `cuda:0`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Longest text in tokens, special tokens included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The head that the model's task reads.
    pub fn head(&self) -> Head {
        match self.task {
            Task::Embedding => Head::Pooled,
            Task::SequenceClassification | Task::TorchScript => Head::SequenceLogits,
            Task::TokenClassification => Head::TokenLogits,
        }
    }

    /// What computes.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Tokenises a text, cut to the model's length.
    pub fn encode(&self, text: &str) -> Result<Encoding, RowError> {
        match &self.tokens {
            Tokens::Text(tokenizer) => tokenizer.encode(text),
            Tokens::Fake { options, text_chars_max } => {
                check_chars(text, *text_chars_max)?;
                let mut tokens = options.tokenize(text);
                let truncated = tokens.len() > self.max_length;
                tokens.truncate(self.max_length);
                Ok(Encoding {
                    token_ids: tokens.iter().map(|token| token.id).collect(),
                    char_spans: tokens.iter().map(|token| Some((token.start, token.end))).collect(),
                    truncated,
                })
            }
        }
    }

    /// What the model says of a text: `numbers` are its pooled vector or logits, or the logits of
    /// each of its tokens.
    pub fn predict(
        &self,
        text: &str,
        encoding: &Encoding,
        numbers: &[f32],
    ) -> Result<Prediction, RowError> {
        prediction::predict(&self.finish, text, &encoding.char_spans, numbers)
    }
}

fn finish(
    spec: &ModelSpec,
    labels: Vec<String>,
    normalize: bool,
    problem_type: Option<ProblemType>,
) -> Finish {
    match spec.task {
        Task::Embedding => Finish::Embedding { normalize },
        Task::SequenceClassification => {
            let alone =
                labels.len() == 1 || problem_type == Some(ProblemType::MultiLabelClassification);
            let default = if alone { Activation::Sigmoid } else { Activation::Softmax };
            Finish::Labels { labels, activation: spec.activation.unwrap_or(default) }
        }
        Task::TokenClassification => Finish::Entities { labels },
        Task::TorchScript => Finish::Values,
    }
}

/// A backend, and where and how it computes.
struct Computing {
    backend: Box<dyn Backend>,
    dtype: &'static str,
    device: String,
}

#[cfg(feature = "torch")]
fn computing(
    files: &ModelFiles,
    config: &ModelConfig,
    spec: &ModelSpec,
    options: &LoadOptions,
) -> Result<Computing, LoadError> {
    use crate::torch::{self, Device, Placement, TorchOptions};
    let options = TorchOptions {
        threads: options.threads,
        allow_torchscript: options.allow_torchscript,
        device: Device::Auto,
    };
    let placement = Placement::choose(spec, options.device)?;
    let backend = torch::load(files, config, spec, &options)?;
    Ok(Computing { backend, dtype: placement.dtype_name(), device: placement.device.to_string() })
}

#[cfg(not(feature = "torch"))]
fn computing(
    _files: &ModelFiles,
    _config: &ModelConfig,
    _spec: &ModelSpec,
    _options: &LoadOptions,
) -> Result<Computing, LoadError> {
    Err(LoadError::NoTorch)
}
