//! Builds the shared encoder from a family's tensor names.

use millrace_crds::inference_service::Task;
use tch::{Kind, Tensor};

use super::encoder::{Encoder, Layer, Linear, Norm};
use super::error::TorchLoadError;
use super::layout::{Limits, Positions};
use super::weights::{Place, Weights};
use crate::config::{Architecture, ModelConfig};

/// A name that every family's encoder has, below its prefix.
const WORDS: &str = "embeddings.word_embeddings.weight";

/// What a family's file needs to load a model.
pub struct Loader<'a> {
    /// The open weight files.
    pub weights: &'a Weights,
    /// The model's shape.
    pub config: &'a ModelConfig,
    /// Where the encoder goes.
    pub place: Place,
    /// What the head is for.
    pub task: Task,
}

/// Names of one layer's maps, without `.weight` and `.bias`.
pub struct LayerNames {
    /// Queries.
    pub query: String,
    /// Keys.
    pub key: String,
    /// Values.
    pub value: String,
    /// Output of the attention.
    pub attention_output: String,
    /// Normalisation after the attention.
    pub attention_norm: String,
    /// Into the feed-forward block.
    pub up: String,
    /// Out of the feed-forward block.
    pub down: String,
    /// Normalisation after the feed-forward block.
    pub output_norm: String,
}

impl Loader<'_> {
    /// The prefix of the encoder's tensors: `name` or nothing.
    pub fn prefix<'n>(&self, name: &'n str) -> Result<&'n str, TorchLoadError> {
        self.weights.prefix(name, WORDS)
    }

    /// Loads the encoder below `prefix`; `names` gives the names of layer `n`, and `relative` the
    /// name of the attention bias where the family has one.
    pub fn encoder(
        &self,
        prefix: &str,
        names: impl Fn(usize) -> LayerNames,
        relative: Option<&str>,
    ) -> Result<Encoder, TorchLoadError> {
        let config = self.config;
        let positions = match config.architecture {
            Architecture::Roberta | Architecture::MpNet => {
                Positions::AfterPadding(config.pad_token_id)
            }
            Architecture::Bert | Architecture::DistilBert | Architecture::TorchScript => {
                Positions::FromZero
            }
        };
        let words = self.tensor(
            &format!("{prefix}{WORDS}"),
            &[config.vocab_size, config.hidden_size],
        )?;
        let relative = relative
            .map(|name| self.tensor(name, &[config.relative_attention_buckets, config.heads]))
            .transpose()?;
        Ok(Encoder {
            words,
            positions: self.positions(prefix)?,
            embedding_norm: self.norm(&format!("{prefix}embeddings.LayerNorm"))?,
            layers: (0..config.layers)
                .map(|index| self.layer(&names(index)))
                .collect::<Result<_, _>>()?,
            activation: config.activation,
            heads: config.heads,
            head_size: config.head_size(),
            relative,
            limits: Limits {
                vocab_size: config.vocab_size,
                tokens_max: config.tokens_max(),
                positions,
            },
            device: self.place.device,
            kind: self.place.kind,
        })
    }

    /// A map of a head, `[output, input]`, in 32 bits.
    pub fn head_linear(
        &self,
        name: &str,
        output: usize,
        input: usize,
    ) -> Result<Linear, TorchLoadError> {
        let place = Place {
            kind: Kind::Float,
            ..self.place
        };
        // A model for another task has an encoder of the same names and another head.
        let of_head = |error| match error {
            TorchLoadError::MissingTensor { name } => TorchLoadError::MissingHead {
                task: self.task,
                name,
            },
            other => other,
        };
        self.linear(name, output, input, place).map_err(of_head)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, TorchLoadError> {
        self.weights.tensor(name, shape, self.place)
    }

    fn linear(
        &self,
        name: &str,
        output: usize,
        input: usize,
        place: Place,
    ) -> Result<Linear, TorchLoadError> {
        Ok(Linear {
            weight: self
                .weights
                .tensor(&format!("{name}.weight"), &[output, input], place)?,
            bias: self
                .weights
                .tensor(&format!("{name}.bias"), &[output], place)?,
        })
    }

    fn norm(&self, name: &str) -> Result<Norm, TorchLoadError> {
        let hidden = [self.config.hidden_size];
        Ok(Norm {
            weight: self.tensor(&format!("{name}.weight"), &hidden)?,
            bias: self.tensor(&format!("{name}.bias"), &hidden)?,
            eps: self.config.layer_norm_eps,
        })
    }

    /// Position vectors. A text has token type 0 throughout, so its vector is added here once
    /// rather than to every token of every batch.
    fn positions(&self, prefix: &str) -> Result<Tensor, TorchLoadError> {
        let hidden = self.config.hidden_size;
        let exact = Place {
            kind: Kind::Float,
            ..self.place
        };
        let name = format!("{prefix}embeddings.position_embeddings.weight");
        let shape = [self.config.max_position_embeddings, hidden];
        let mut positions = self.weights.tensor(&name, &shape, exact)?;
        if self.config.type_vocab_size > 0 {
            let name = format!("{prefix}embeddings.token_type_embeddings.weight");
            let shape = [self.config.type_vocab_size, hidden];
            let types = self.weights.tensor(&name, &shape, exact)?;
            positions = positions.f_add_(&types.f_narrow(0, 0, 1)?)?;
        }
        Ok(positions.f_to_kind(self.place.kind)?)
    }

    fn layer(&self, names: &LayerNames) -> Result<Layer, TorchLoadError> {
        let LayerNames {
            query,
            key,
            value,
            attention_output,
            attention_norm,
            up,
            down,
            output_norm,
        } = names;
        let (hidden, wide) = (self.config.hidden_size, self.config.intermediate_size);
        // Divided here once rather than in every attention of every batch.
        let scale = (self.config.head_size() as f64).sqrt().recip();
        let stacked = |suffix: &str, shape: &[usize]| {
            let [query, key, value] = [query, key, value].map(|name| format!("{name}{suffix}"));
            let parts = [
                (query.as_str(), scale),
                (key.as_str(), 1.0),
                (value.as_str(), 1.0),
            ];
            self.weights.stacked(&parts, shape, self.place)
        };
        Ok(Layer {
            query_key_value: Linear {
                weight: stacked(".weight", &[hidden, hidden])?,
                bias: stacked(".bias", &[hidden])?,
            },
            attention_output: self.linear(attention_output, hidden, hidden, self.place)?,
            attention_norm: self.norm(attention_norm)?,
            up: self.linear(up, wide, hidden, self.place)?,
            down: self.linear(down, hidden, wide, self.place)?,
            output_norm: self.norm(output_norm)?,
        })
    }
}
