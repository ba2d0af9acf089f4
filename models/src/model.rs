//! A loaded model: tokeniser, backend, and what its task makes of the numbers.

mod ruler;
mod tokens;

use std::path::PathBuf;
use std::time::Duration;

use millrace_crds::inference_service::{Activation, ModelSpec, Task};
use millrace_protocol::row::RowError;
use millrace_protocol::wire::Prediction;

use crate::backend::{Backend, Head};
use crate::config::{ModelConfig, ProblemType};
use crate::fake::{self, FakeBackend, FakeOptions};
use crate::fingerprint::{Loaded, fingerprint};
use crate::folder::{FolderError, ModelFolder};
use crate::prediction::{self, Finish};
use crate::source::ModelFiles;
use crate::tokenizer::TextLimits;

use self::tokens::Tokens;

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

impl LoadError {
    /// Whether loading the model again cannot help: its files or its spec are at fault, not the
    /// moment.
    pub fn is_permanent(&self) -> bool {
        match self {
            LoadError::Folder(error) => error.is_permanent(),
            #[cfg(feature = "torch")]
            LoadError::Torch(error) => error.is_permanent(),
            LoadError::NoTorch => true,
        }
    }
}

/// A model that answers.
pub struct Model {
    name: String,
    task: Task,
    digest: String,
    fingerprint: [u8; 32],
    dtype: &'static str,
    device: String,
    max_length: usize,
    tokens: Tokens,
    finish: Finish,
    backend: Box<dyn Backend>,
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
        let (digest, dtype) = ("fake", "Float32");
        let max_length = spec.max_length;
        let max_length = max_length.map_or(fake::MAX_LENGTH, |length| length as usize);
        let stand_in = format!("{options:?}");
        let loaded = Loaded {
            digest,
            dtype,
            max_length,
            stand_in: Some(&stand_in),
        };
        Model {
            name: spec.name.clone(),
            task: spec.task,
            digest: digest.to_owned(),
            fingerprint: fingerprint(spec, loaded),
            dtype,
            device: "fake".to_owned(),
            max_length,
            tokens: Tokens::Fake {
                options: options.clone(),
                text_chars_max,
            },
            finish: finish(spec, labels, spec.normalize.unwrap_or(true), None),
            backend: Box::new(backend),
        }
    }

    fn from_files(spec: &ModelSpec, options: &LoadOptions) -> Result<Model, LoadError> {
        let limits = TextLimits {
            text_chars_max: options.text_chars_max,
            tokenize_deadline: options.tokenize_deadline,
        };
        let ModelFolder {
            files,
            config,
            tokenizer,
            max_length,
            normalize,
        } = ModelFolder::open(spec, &options.model_cache, limits)?;
        let labels = spec.labels.clone().unwrap_or_else(|| config.labels.clone());
        let Computing {
            backend,
            dtype,
            device,
        } = computing(&files, &config, spec, options)?;
        let loaded = Loaded {
            digest: &files.digest,
            dtype,
            max_length,
            stand_in: None,
        };
        Ok(Model {
            name: spec.name.clone(),
            task: spec.task,
            fingerprint: fingerprint(spec, loaded),
            digest: files.digest,
            dtype,
            device,
            max_length,
            tokens: Tokens::Text(Box::new(tokenizer)),
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

    /// What decides the model's answers, as one hash: its files and its settings.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
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

    /// Whether the model scales its embeddings to length 1.
    pub fn normalizes(&self) -> bool {
        self.finish == Finish::Embedding { normalize: true }
    }

    /// What computes.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// What decides the tokens of a text, as one hash. Of two models with the same one, either may
    /// tokenise for both.
    pub fn tokens_fingerprint(&self) -> [u8; 32] {
        self.tokens.fingerprint(self.max_length)
    }

    /// Whether encodings say which characters each token stands for, as [`Model::predict`] needs them for
    /// entities.
    pub fn has_spans(&self) -> bool {
        self.tokens.has_spans()
    }

    /// Tokenises a text, cut to the model's length.
    pub fn encode(&self, text: &str) -> Result<Encoding, RowError> {
        self.tokens.encode(text, self.max_length)
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
            let default = match problem_type {
                // The numbers themselves are the answer.
                Some(ProblemType::Regression) => None,
                Some(ProblemType::MultiLabelClassification) => Some(Activation::Sigmoid),
                Some(ProblemType::SingleLabelClassification) | None => match labels.len() {
                    1 => Some(Activation::Sigmoid),
                    _ => Some(Activation::Softmax),
                },
            };
            Finish::Labels {
                labels,
                activation: spec.activation.or(default),
            }
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
    Ok(Computing {
        backend,
        dtype: placement.dtype_name(),
        device: placement.device.to_string(),
    })
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

#[cfg(test)]
mod tests {
    use millrace_protocol::row::RowErrorCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::backend::PackedBatch;

    fn options(backend: BackendChoice) -> LoadOptions {
        LoadOptions {
            model_cache: PathBuf::from("/nowhere"),
            threads: 1,
            allow_torchscript: false,
            text_chars_max: 100,
            tokenize_deadline: Duration::from_secs(60),
            backend,
        }
    }

    /// A fake model whose spec has `more` beside what every spec has.
    fn fake(task: &str, more: Value) -> Model {
        let mut spec = json!({"name": "m", "task": task, "source": {"uri": "hf://owner/name"}});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let fake = "nan-on=odd".parse().unwrap();
        let spec = serde_json::from_value(spec).unwrap();
        Model::load(&spec, &options(BackendChoice::Fake(fake))).unwrap()
    }

    fn predicted(model: &Model, text: &str) -> Result<Prediction, RowError> {
        let encoding = model.encode(text)?;
        let batch = PackedBatch::pack([encoding.token_ids.as_slice()]);
        let output = model
            .backend()
            .forward(&batch, &[model.head()])
            .unwrap()
            .remove(0);
        model.predict(text, &encoding, &output.values)
    }

    fn length(model: &Model) -> f32 {
        match predicted(model, "mill race").unwrap() {
            Prediction::Embedding(vector) => vector.iter().map(|v| v * v).sum::<f32>().sqrt(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn embeddings_have_length_one_unless_the_spec_says_otherwise() {
        assert!((length(&fake("Embedding", json!({}))) - 1.0).abs() < 1e-5);
        let raw = length(&fake("Embedding", json!({"normalize": false})));
        assert!((raw - 1.0).abs() > 1e-3, "{raw}");
    }

    #[test]
    fn labels_are_the_specs_and_their_scores_sum_to_one() {
        let model = fake("SequenceClassification", json!({"labels": ["a", "b", "c"]}));
        let Prediction::Labels(labels) = predicted(&model, "mill race").unwrap() else {
            panic!("no labels");
        };
        assert!((labels.iter().map(|label| label.score).sum::<f32>() - 1.0).abs() < 1e-5);
        let mut names: Vec<_> = labels.into_iter().map(|label| label.label).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn one_label_has_a_score_of_its_own() {
        let model = fake("SequenceClassification", json!({"labels": ["spam"]}));
        let Prediction::Labels(labels) = predicted(&model, "mill race").unwrap() else {
            panic!("no labels");
        };
        assert!(
            labels[0].score < 1.0,
            "a softmax over one label is always 1"
        );
    }

    #[test]
    fn a_regression_answers_its_numbers_unless_the_spec_says_otherwise() {
        let spec = |activation: Value| {
            let spec = json!({
                "name": "m", "task": "SequenceClassification", "source": {"uri": "hf://a/b"},
                "activation": activation,
            });
            serde_json::from_value::<ModelSpec>(spec).unwrap()
        };
        let answer = |activation: Value, problem_type| {
            let labels = vec!["stars".to_owned()];
            let finish = finish(&spec(activation), labels, true, problem_type);
            match prediction::predict(&finish, "", &[], &[3.25]).unwrap() {
                Prediction::Labels(labels) => labels[0].score,
                other => panic!("{other:?}"),
            }
        };
        let regression = Some(ProblemType::Regression);
        assert_eq!(answer(Value::Null, regression), 3.25);
        assert!(answer(json!("Sigmoid"), regression) < 1.0);
        assert!(answer(Value::Null, None) < 1.0);
    }

    #[test]
    fn entities_are_pieces_of_the_text() {
        let model = fake("TokenClassification", json!({"labels": ["B-A", "B-B"]}));
        let Prediction::Entities(entities) = predicted(&model, "José in Köln").unwrap() else {
            panic!("no entities");
        };
        let words: Vec<_> = entities.iter().map(|entity| entity.word.as_str()).collect();
        assert_eq!(words, ["José", "in", "Köln"]);
    }

    #[test]
    fn a_text_is_cut_to_the_length_in_the_spec_and_refused_above_the_character_cap() {
        let model = fake("Embedding", json!({"maxLength": 3}));
        let encoding = model.encode("a b c d").unwrap();
        assert_eq!((encoding.token_ids.len(), encoding.truncated), (3, true));
        let error = model.encode(&".".repeat(101)).unwrap_err();
        assert_eq!(error.code, RowErrorCode::TextTooLong);
    }

    #[test]
    fn an_empty_text_and_an_answer_of_nan_are_errors_of_their_row() {
        let model = fake("Embedding", json!({}));
        assert_eq!(model.encode(" ").unwrap_err().code, RowErrorCode::EmptyText);
        assert_eq!(
            predicted(&model, "odd").unwrap_err().code,
            RowErrorCode::NotFinite
        );
    }

    #[test]
    fn a_model_that_is_not_there_is_an_error_that_says_where_it_was_sought() {
        let spec = json!({"name": "m", "task": "Embedding", "source": {"uri": "hf://owner/name"}});
        let spec = serde_json::from_value(spec).unwrap();
        let error = Model::load(&spec, &options(BackendChoice::Torch))
            .map(|_| ())
            .unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("/nowhere/owner/name"), "{source}");
    }
}
