//! BERT: a classifier reads the first token through the pooler's dense map and tanh.

use super::encoder::Encoder;
use super::error::TorchLoadError;
use super::head::{DenseActivation, SequenceClassifier};
use super::loader::{LayerNames, Loader};

const PREFIX: &str = "bert.";

/// Loads the encoder.
pub fn encoder(loader: &Loader) -> Result<Encoder, TorchLoadError> {
    encoder_below(loader, PREFIX)
}

/// Loads an encoder with BERT's names below `prefix`, or below none.
pub fn encoder_below(loader: &Loader, prefix: &str) -> Result<Encoder, TorchLoadError> {
    let prefix = loader.prefix(prefix)?;
    loader.encoder(prefix, |layer| layer_names(prefix, layer), None)
}

/// Loads the classifier of a sequence.
pub fn sequence_classifier(loader: &Loader) -> Result<SequenceClassifier, TorchLoadError> {
    let prefix = loader.prefix(PREFIX)?;
    let hidden = loader.config.hidden_size;
    Ok(SequenceClassifier {
        dense: loader.head_linear(&format!("{prefix}pooler.dense"), hidden, hidden)?,
        activation: DenseActivation::Tanh,
        output: loader.head_linear("classifier", loader.config.labels.len(), hidden)?,
    })
}

fn layer_names(prefix: &str, layer: usize) -> LayerNames {
    let name = |part: &str| format!("{prefix}encoder.layer.{layer}.{part}");
    LayerNames {
        query: name("attention.self.query"),
        key: name("attention.self.key"),
        value: name("attention.self.value"),
        attention_output: name("attention.output.dense"),
        attention_norm: name("attention.output.LayerNorm"),
        up: name("intermediate.dense"),
        down: name("output.dense"),
        output_norm: name("output.LayerNorm"),
    }
}
