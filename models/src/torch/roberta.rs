//! RoBERTa, XLM-RoBERTa, CamemBERT: BERT's layers with positions that start after the padding id,
//! and a classifier with a dense map of its own.

use super::bert;
use super::encoder::Encoder;
use super::error::TorchLoadError;
use super::head::{DenseActivation, SequenceClassifier};
use super::loader::Loader;

/// Loads the encoder.
pub fn encoder(loader: &Loader) -> Result<Encoder, TorchLoadError> {
    bert::encoder_below(loader, "roberta.")
}

/// Loads the classifier of a sequence; MPNet's has the same form and names.
pub fn sequence_classifier(loader: &Loader) -> Result<SequenceClassifier, TorchLoadError> {
    let hidden = loader.config.hidden_size;
    Ok(SequenceClassifier {
        dense: loader.head_linear("classifier.dense", hidden, hidden)?,
        activation: DenseActivation::Tanh,
        output: loader.head_linear("classifier.out_proj", loader.config.labels.len(), hidden)?,
    })
}
