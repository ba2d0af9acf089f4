//! MPNet: a bias by relative position, shared by all layers, is added to the attention scores.

use super::encoder::Encoder;
use super::error::TorchLoadError;
use super::head::SequenceClassifier;
use super::loader::{LayerNames, Loader};
use super::roberta;

/// Loads the encoder.
pub fn encoder(loader: &Loader) -> Result<Encoder, TorchLoadError> {
    let prefix = loader.prefix("mpnet.")?;
    let relative = format!("{prefix}encoder.relative_attention_bias.weight");
    loader.encoder(prefix, |layer| layer_names(prefix, layer), Some(&relative))
}

/// Loads the classifier of a sequence.
pub fn sequence_classifier(loader: &Loader) -> Result<SequenceClassifier, TorchLoadError> {
    roberta::sequence_classifier(loader)
}

fn layer_names(prefix: &str, layer: usize) -> LayerNames {
    let name = |part: &str| format!("{prefix}encoder.layer.{layer}.{part}");
    LayerNames {
        query: name("attention.attn.q"),
        key: name("attention.attn.k"),
        value: name("attention.attn.v"),
        attention_output: name("attention.attn.o"),
        attention_norm: name("attention.LayerNorm"),
        up: name("intermediate.dense"),
        down: name("output.dense"),
        output_norm: name("output.LayerNorm"),
    }
}
