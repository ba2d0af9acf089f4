//! The part of a model's `config.json` that the backends need, checked.
//!
//! Every number is bounded here, so that nothing later multiplies or allocates by a figure that a
//! hostile file chose. It never looks at weights or tokenisers.

mod fields;

use std::path::{Path, PathBuf};

use serde_json::Value;

use self::fields::Fields;
use crate::bounded;

/// Largest `config.json` that is read; real ones are a few KiB, label lists included.
const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// More labels than any published classifier has.
const LABELS_MAX: u64 = 100_000;

/// Families of encoders, each with its own tensor names and heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// BERT, and the many models trained on its shape (MiniLM, BGE, E5, GTE).
    Bert,
    /// RoBERTa, XLM-RoBERTa and CamemBERT: positions start after the padding id.
    Roberta,
    /// DistilBERT: no token types, other tensor names.
    DistilBert,
    /// MPNet: a relative position bias on the attention scores.
    MpNet,
    /// A TorchScript module that knows its own shape.
    TorchScript,
}

/// The function between the two linears of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HiddenActivation {
    /// GELU with the exact error function.
    GeluErf,
    /// GELU approximated with tanh.
    GeluTanh,
    /// max(0, x).
    Relu,
    /// x · sigmoid(x).
    Silu,
}

/// What the classifier was trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// One number per label, no score.
    Regression,
    /// Exactly one label is true.
    SingleLabelClassification,
    /// Each label stands alone.
    MultiLabelClassification,
}

/// A model's shape, from `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family of the encoder.
    pub architecture: Architecture,
    /// Numbers per token vector.
    pub hidden_size: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads; they divide `hidden_size`.
    pub heads: usize,
    /// Numbers per token between the two linears of a feed-forward block.
    pub intermediate_size: usize,
    /// Rows of the word embeddings: token ids are below it.
    pub vocab_size: usize,
    /// Rows of the position embeddings. See [`ModelConfig::tokens_max`] for what a text may use.
    pub max_position_embeddings: usize,
    /// Rows of the token type embeddings; 0 where the family has none.
    pub type_vocab_size: usize,
    /// Token id of padding.
    pub pad_token_id: usize,
    /// Added to the variance by layer normalisation.
    pub layer_norm_eps: f64,
    /// The function of the feed-forward blocks.
    pub activation: HiddenActivation,
    /// Rows of MPNet's relative attention bias; 0 elsewhere.
    pub relative_attention_buckets: usize,
    /// Names of the classes, in the order of the logits.
    pub labels: Vec<String>,
    /// What the classifier was trained for, where the file says so.
    pub problem_type: Option<ProblemType>,
}

/// Why a `config.json` was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is far larger than a configuration.
    #[error("{} is larger than {CONFIG_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not JSON.
    #[error("config.json is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// The file's JSON is not an object.
    #[error("config.json is not a JSON object")]
    NotAnObject,
    /// A field that the family needs is absent.
    #[error("config.json has no field {field:?}")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field has the wrong JSON type.
    #[error("config.json: {field:?} must be {expected}")]
    WrongType {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A number is out of its range.
    #[error("config.json: {field:?} is {got}, outside {min} to {max}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What the file says.
        got: String,
        /// Smallest allowed value.
        min: u64,
        /// Largest allowed value.
        max: u64,
    },
    /// A word has a value that no backend computes.
    #[error("config.json: {field:?} is {got:?}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What the file says.
        got: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// The hidden size cannot be split among the heads.
    #[error("config.json: {heads} attention heads do not divide hidden size {hidden_size}")]
    HeadsDoNotDivide {
        /// Attention heads.
        heads: usize,
        /// Hidden size.
        hidden_size: usize,
    },
    /// The labels are not numbered 0, 1, 2, ….
    #[error("config.json: \"id2label\" must name every class from 0 to {last}, and {key:?} is not one", last = labels - 1)]
    LabelKey {
        /// Number of entries.
        labels: usize,
        /// The key that does not fit.
        key: String,
    },
}

impl ConfigError {
    /// Whether reading the file again cannot help.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, ConfigError::Read { .. })
    }
}

impl ModelConfig {
    /// Reads and checks `config.json` at `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let fail = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = bounded::read(path, CONFIG_BYTES_MAX).map_err(fail)?;
        let bytes = bytes.ok_or_else(|| ConfigError::TooLarge {
            path: path.to_owned(),
        });
        Self::parse(&bytes?)
    }

    /// Checks the bytes of a `config.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_slice(bytes).map_err(ConfigError::NotJson)?;
        let Value::Object(map) = value else {
            return Err(ConfigError::NotAnObject);
        };
        let fields = Fields(&map);
        let architecture = architecture(&fields)?;
        refuse_variants(&fields)?;
        match architecture {
            Architecture::Bert => bert_like(&fields, architecture, 2, 0),
            Architecture::Roberta => bert_like(&fields, architecture, 2, 1),
            Architecture::DistilBert => distilbert(&fields),
            Architecture::MpNet => mpnet(&fields),
            Architecture::TorchScript => torchscript(&fields),
        }
    }

    /// Longest sequence in tokens that the position embeddings reach, special tokens included.
    pub fn tokens_max(&self) -> usize {
        self.max_position_embeddings - self.first_position()
    }

    /// Position of a sequence's first token: RoBERTa and MPNet count from after the padding id.
    pub fn first_position(&self) -> usize {
        match self.architecture {
            Architecture::Roberta | Architecture::MpNet => self.pad_token_id + 1,
            Architecture::Bert | Architecture::DistilBert | Architecture::TorchScript => 0,
        }
    }

    /// Numbers per attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.heads
    }
}

fn architecture(fields: &Fields) -> Result<Architecture, ConfigError> {
    match fields.required_text("model_type")? {
        "bert" => Ok(Architecture::Bert),
        "roberta" | "xlm-roberta" | "camembert" => Ok(Architecture::Roberta),
        "distilbert" => Ok(Architecture::DistilBert),
        "mpnet" => Ok(Architecture::MpNet),
        "torchscript" => Ok(Architecture::TorchScript),
        other => Err(ConfigError::Unsupported {
            field: "model_type",
            got: other.to_owned(),
            supported: "bert, roberta, xlm-roberta, camembert, distilbert, mpnet, torchscript",
        }),
    }
}

/// Refuses settings that change the computation in ways the encoders do not follow: a wrong
/// answer is worse than none.
fn refuse_variants(fields: &Fields) -> Result<(), ConfigError> {
    match fields.text("position_embedding_type")? {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(ConfigError::Unsupported {
                field: "position_embedding_type",
                got: other.to_owned(),
                supported: "absolute",
            });
        }
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if fields.flag(field)? {
            return Err(ConfigError::Unsupported {
                field,
                got: "true".to_owned(),
                supported: "false",
            });
        }
    }
    Ok(())
}

fn bert_like(
    fields: &Fields,
    architecture: Architecture,
    type_vocab_size: u64,
    pad_token_id: u64,
) -> Result<ModelConfig, ConfigError> {
    let config = ModelConfig {
        architecture,
        hidden_size: fields.number("hidden_size", None, 1, 65_536)?,
        layers: fields.number("num_hidden_layers", None, 1, 256)?,
        heads: fields.number("num_attention_heads", None, 1, 1_024)?,
        intermediate_size: fields.number("intermediate_size", None, 1, 1_048_576)?,
        vocab_size: vocab_size(fields)?,
        max_position_embeddings: positions(fields)?,
        type_vocab_size: fields.number("type_vocab_size", Some(type_vocab_size), 1, 65_536)?,
        pad_token_id: fields.number("pad_token_id", Some(pad_token_id), 0, 16_777_215)?,
        layer_norm_eps: fields.epsilon("layer_norm_eps", 1e-12)?,
        activation: activation(fields, "hidden_act")?,
        relative_attention_buckets: 0,
        labels: labels(fields)?,
        problem_type: problem_type(fields)?,
    };
    checked(config)
}

fn distilbert(fields: &Fields) -> Result<ModelConfig, ConfigError> {
    let config = ModelConfig {
        architecture: Architecture::DistilBert,
        hidden_size: fields.number("dim", None, 1, 65_536)?,
        layers: fields.number("n_layers", None, 1, 256)?,
        heads: fields.number("n_heads", None, 1, 1_024)?,
        intermediate_size: fields.number("hidden_dim", None, 1, 1_048_576)?,
        vocab_size: vocab_size(fields)?,
        max_position_embeddings: positions(fields)?,
        type_vocab_size: 0,
        pad_token_id: fields.number("pad_token_id", Some(0), 0, 16_777_215)?,
        layer_norm_eps: 1e-12,
        activation: activation(fields, "activation")?,
        relative_attention_buckets: 0,
        labels: labels(fields)?,
        problem_type: problem_type(fields)?,
    };
    checked(config)
}

fn mpnet(fields: &Fields) -> Result<ModelConfig, ConfigError> {
    let mut config = bert_like(fields, Architecture::MpNet, 1, 1)?;
    config.type_vocab_size = 0;
    // The family counts positions from after id 1, whatever the file says padding is.
    config.pad_token_id = 1;
    // Published weights have 32 buckets, and the reference computes with 32 whatever is written.
    config.relative_attention_buckets =
        fields.number("relative_attention_num_buckets", Some(32), 32, 32)?;
    checked(config)
}

/// A TorchScript module carries its own shape; the file only bounds what may be fed to it.
fn torchscript(fields: &Fields) -> Result<ModelConfig, ConfigError> {
    Ok(ModelConfig {
        architecture: Architecture::TorchScript,
        hidden_size: 1,
        layers: 1,
        heads: 1,
        intermediate_size: 1,
        vocab_size: vocab_size(fields)?,
        max_position_embeddings: positions(fields)?,
        type_vocab_size: 0,
        pad_token_id: fields.number("pad_token_id", Some(0), 0, 16_777_215)?,
        layer_norm_eps: 0.0,
        activation: HiddenActivation::GeluErf,
        relative_attention_buckets: 0,
        labels: labels(fields)?,
        problem_type: problem_type(fields)?,
    })
}

fn checked(config: ModelConfig) -> Result<ModelConfig, ConfigError> {
    if !config.hidden_size.is_multiple_of(config.heads) {
        return Err(ConfigError::HeadsDoNotDivide {
            heads: config.heads,
            hidden_size: config.hidden_size,
        });
    }
    // At least one token must fit behind the positions that are never used.
    if config.max_position_embeddings <= config.first_position() {
        return Err(ConfigError::OutOfRange {
            field: "max_position_embeddings",
            got: config.max_position_embeddings.to_string(),
            min: config.first_position() as u64 + 1,
            max: 1_048_576,
        });
    }
    Ok(config)
}

fn vocab_size(fields: &Fields) -> Result<usize, ConfigError> {
    fields.number("vocab_size", None, 1, 16_777_216)
}

fn positions(fields: &Fields) -> Result<usize, ConfigError> {
    fields.number("max_position_embeddings", None, 1, 1_048_576)
}

fn activation(fields: &Fields, field: &'static str) -> Result<HiddenActivation, ConfigError> {
    match fields.text(field)?.unwrap_or("gelu") {
        "gelu" | "gelu_python" => Ok(HiddenActivation::GeluErf),
        "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" => {
            Ok(HiddenActivation::GeluTanh)
        }
        "relu" => Ok(HiddenActivation::Relu),
        "silu" | "swish" => Ok(HiddenActivation::Silu),
        other => Err(ConfigError::Unsupported {
            field,
            got: other.to_owned(),
            supported: "gelu, gelu_python, gelu_new, gelu_fast, gelu_accurate, gelu_pytorch_tanh, relu, silu, swish",
        }),
    }
}

fn problem_type(fields: &Fields) -> Result<Option<ProblemType>, ConfigError> {
    match fields.text("problem_type")? {
        None => Ok(None),
        Some("regression") => Ok(Some(ProblemType::Regression)),
        Some("single_label_classification") => Ok(Some(ProblemType::SingleLabelClassification)),
        Some("multi_label_classification") => Ok(Some(ProblemType::MultiLabelClassification)),
        Some(other) => Err(ConfigError::Unsupported {
            field: "problem_type",
            got: other.to_owned(),
            supported: "regression, single_label_classification, multi_label_classification",
        }),
    }
}

/// Class names in the order of the logits. A file without them means two classes, as it does for
/// the libraries that write such files.
fn labels(fields: &Fields) -> Result<Vec<String>, ConfigError> {
    let Some(value) = fields.get("id2label") else {
        let count = fields.number("num_labels", Some(2), 1, LABELS_MAX)?;
        return Ok((0..count).map(|index| format!("LABEL_{index}")).collect());
    };
    let wrong = ConfigError::WrongType {
        field: "id2label",
        expected: "an object from class numbers to names",
    };
    let Value::Object(map) = value else {
        return Err(wrong);
    };
    if map.is_empty() || map.len() as u64 > LABELS_MAX {
        return Err(ConfigError::OutOfRange {
            field: "id2label",
            got: format!("{} entries", map.len()),
            min: 1,
            max: LABELS_MAX,
        });
    }
    let mut names = vec![None; map.len()];
    for (key, name) in map {
        // Two spellings of one number ("1", "01") would leave a hole elsewhere, found below.
        let slot = key
            .parse::<usize>()
            .ok()
            .and_then(|index| names.get_mut(index));
        let Some(slot @ None) = slot else {
            return Err(ConfigError::LabelKey {
                labels: map.len(),
                key: key.clone(),
            });
        };
        *slot = Some(match name {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(wrong),
        });
    }
    Ok(names.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
