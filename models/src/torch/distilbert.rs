//! DistilBERT: no token types, names of its own, and a classifier with ReLU.

use super::encoder::Encoder;
use super::error::TorchLoadError;
use super::head::{DenseActivation, SequenceClassifier};
use super::loader::{LayerNames, Loader};

/// Loads the encoder.
pub fn encoder(loader: &Loader) -> Result<Encoder, TorchLoadError> {
    let prefix = loader.prefix("distilbert.")?;
    loader.encoder(prefix, |layer| layer_names(prefix, layer), None)
}

/// Loads the classifier of a sequence.
pub fn sequence_classifier(loader: &Loader) -> Result<SequenceClassifier, TorchLoadError> {
    let hidden = loader.config.hidden_size;
    Ok(SequenceClassifier {
        dense: loader.head_linear("pre_classifier", hidden, hidden)?,
        activation: DenseActivation::Relu,
        output: loader.head_linear("classifier", loader.config.labels.len(), hidden)?,
    })
}

fn layer_names(prefix: &str, layer: usize) -> LayerNames {
    let name = |part: &str| format!("{prefix}transformer.layer.{layer}.{part}");
    LayerNames {
        query: name("attention.q_lin"),
        key: name("attention.k_lin"),
        value: name("attention.v_lin"),
        attention_output: name("attention.out_lin"),
        attention_norm: name("sa_layer_norm"),
        up: name("ffn.lin1"),
        down: name("ffn.lin2"),
        output_norm: name("output_layer_norm"),
    }
}
