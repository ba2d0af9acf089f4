//! What is computed from the token vectors: a pooled vector, or the logits of a classifier.
//!
//! Heads compute in 32 bits whatever the encoder's format is: they are a small part of the work,
//! and their sums and logits are what users see.

use millrace_crds::inference_service::Pooling;
use tch::{Device, Kind, TchError, Tensor};

use super::encoder::{Linear, Rows};
use super::layout::Layout;
use crate::backend::Head;

/// A loaded head.
pub enum LoadedHead {
    /// One vector per sequence.
    Pooled {
        /// How token vectors become one.
        pooling: Pooling,
        /// Numbers per vector.
        width: usize,
    },
    /// Class logits per sequence, from the first token.
    Sequence(SequenceClassifier),
    /// Class logits per token, `[labels, hidden]`.
    Token(Linear),
}

/// The classifier of a whole sequence.
pub struct SequenceClassifier {
    /// Between the first token's vector and the logits, `[hidden, hidden]`.
    pub dense: Linear,
    /// After the dense map.
    pub activation: DenseActivation,
    /// `[labels, hidden]`.
    pub output: Linear,
}

/// The function after a classifier's dense map; it differs by family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseActivation {
    /// BERT, RoBERTa, MPNet.
    Tanh,
    /// DistilBERT.
    Relu,
}

impl LoadedHead {
    /// The head that this is.
    pub fn head(&self) -> Head {
        match self {
            Self::Pooled { .. } => Head::Pooled,
            Self::Sequence(_) => Head::SequenceLogits,
            Self::Token(_) => Head::TokenLogits,
        }
    }

    /// Numbers per output row.
    pub fn width(&self) -> usize {
        match self {
            Self::Pooled { width, .. } => *width,
            Self::Sequence(SequenceClassifier { output, .. }) | Self::Token(output) => {
                output.bias.size()[0] as usize
            }
        }
    }

    /// The token vectors that the head reads.
    pub fn rows(&self) -> Rows {
        match self {
            Self::Pooled {
                pooling: Pooling::Cls,
                ..
            }
            | Self::Sequence(_) => Rows::First,
            Self::Pooled {
                pooling: Pooling::Mean,
                ..
            }
            | Self::Token(_) => Rows::All,
        }
    }

    /// Token vectors as [`LoadedHead::rows`] asked for to output rows in 32 bits, one per sequence
    /// or token in the layout's order.
    pub fn apply(&self, hidden: &Tensor, layout: &Layout) -> Result<Tensor, TchError> {
        let hidden = hidden.f_to_kind(Kind::Float)?;
        match self {
            Self::Pooled {
                pooling: Pooling::Cls,
                ..
            } => Ok(hidden),
            Self::Pooled {
                pooling: Pooling::Mean,
                ..
            } => mean(&hidden, layout),
            Self::Sequence(SequenceClassifier {
                dense,
                activation,
                output,
            }) => {
                let mut dense = dense.apply(&hidden)?;
                dense = match activation {
                    DenseActivation::Tanh => dense.f_tanh_()?,
                    DenseActivation::Relu => dense.f_relu_()?,
                };
                output.apply(&dense)
            }
            Self::Token(output) => output.apply(&hidden.f_narrow(0, 0, layout.tokens() as i64)?),
        }
    }
}

/// The mean of each sequence's rows: the matrix is looked up as if it were a table of embeddings,
/// which sums ranges of rows in one pass.
fn mean(hidden: &Tensor, layout: &Layout) -> Result<Tensor, TchError> {
    const MEAN: i64 = 1;
    let device = hidden.device();
    let indices = Tensor::f_arange(layout.tokens() as i64, (Kind::Int64, device))?;
    let offsets: Vec<i64> = layout.starts.iter().map(|&start| start as i64).collect();
    let offsets = Tensor::f_from_slice(&offsets)?.f_to_device(device)?;
    let no_weights = None::<&Tensor>;
    let (means, ..) = Tensor::f_embedding_bag(
        hidden, &indices, &offsets, false, MEAN, false, no_weights, true,
    )?;
    Ok(means)
}

/// Copies a tensor in 32 bits to host memory, row-major.
pub fn to_host(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let tensor = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}
