//! The encoder that the families share: embeddings, then layers of attention and feed-forward
//! blocks with the normalisation after each.

use tch::{Device, Kind, TchError, Tensor};

use super::attention::{AttentionPlan, AttentionShape};
use super::layout::{Layout, Limits};
use crate::config::HiddenActivation;

/// A linear map.
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Tensor,
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    pub fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_linear(&self.weight, Some(&self.bias))
    }
}

/// Layer normalisation.
pub struct Norm {
    /// `[hidden]`.
    pub weight: Tensor,
    /// `[hidden]`.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl Norm {
    fn apply(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let size = self.weight.size();
        input.f_layer_norm(size, Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

/// One layer.
pub struct Layer {
    /// Queries (divided by the square root of the head size), keys and values in one product,
    /// `[3 * hidden, hidden]`.
    pub query_key_value: Linear,
    /// Output of the attention, `[hidden, hidden]`.
    pub attention_output: Linear,
    /// After the attention.
    pub attention_norm: Norm,
    /// Into the feed-forward block, `[intermediate, hidden]`.
    pub up: Linear,
    /// Out of the feed-forward block, `[hidden, intermediate]`.
    pub down: Linear,
    /// After the feed-forward block.
    pub output_norm: Norm,
}

/// A loaded encoder.
pub struct Encoder {
    /// Word vectors, `[vocabulary, hidden]`.
    pub words: Tensor,
    /// Position vectors with the vector of token type 0 added, `[positions, hidden]`.
    pub positions: Tensor,
    /// After the embeddings.
    pub embedding_norm: Norm,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// The function of the feed-forward blocks.
    pub activation: HiddenActivation,
    /// Attention heads.
    pub heads: usize,
    /// Numbers per head.
    pub head_size: usize,
    /// Attention bias by relative position, `[buckets, heads]`, where the family has one.
    pub relative: Option<Tensor>,
    /// What a batch must keep.
    pub limits: Limits,
    /// Device of all tensors.
    pub device: Device,
    /// Format of all tensors.
    pub kind: Kind,
}

/// Which token vectors a head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// The first token of each sequence, `[sequences, hidden]`.
    First,
    /// Every token, `[rows, hidden]`, unused rows included.
    All,
}

impl Encoder {
    /// Computes the token vectors that a head reads.
    pub fn forward(&self, layout: &Layout, rows: Rows) -> Result<Tensor, TchError> {
        let shape = AttentionShape {
            heads: self.heads,
            head_size: self.head_size,
            device: self.device,
            kind: self.kind,
            relative: self.relative.as_ref(),
        };
        let attention = AttentionPlan::new(layout, &shape)?;
        let first = match rows {
            Rows::First => {
                let count = layout.order.len();
                let starts: Vec<i64> = layout.starts[..count].iter().map(|&n| n as i64).collect();
                Some(Tensor::f_from_slice(&starts)?.f_to_device(self.device)?)
            }
            Rows::All => None,
        };
        let mut hidden = self.embed(layout)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let query_key_value = layer.query_key_value.apply(&hidden)?;
            let mut context = attention.attend(&query_key_value)?;
            // After the last attention no token looks at another: where only first tokens are
            // read, the rest of the layer is computed for them alone.
            if let Some(first) = first.as_ref().filter(|_| index + 1 == self.layers.len()) {
                context = context.f_index_select(0, first)?;
                hidden = hidden.f_index_select(0, first)?;
            }
            hidden = self.finish(layer, &hidden, &context)?;
        }
        Ok(hidden)
    }

    fn embed(&self, layout: &Layout) -> Result<Tensor, TchError> {
        let token_ids = Tensor::f_from_slice(&layout.token_ids)?.f_to_device(self.device)?;
        let position_ids = Tensor::f_from_slice(&layout.position_ids)?.f_to_device(self.device)?;
        let mut sum = self.words.f_index_select(0, &token_ids)?;
        sum = sum.f_add_(&self.positions.f_index_select(0, &position_ids)?)?;
        self.embedding_norm.apply(&sum)
    }

    /// Everything of a layer after the attention, which is row by row.
    fn finish(&self, layer: &Layer, hidden: &Tensor, context: &Tensor) -> Result<Tensor, TchError> {
        let attended = layer.attention_output.apply(context)?.f_add_(hidden)?;
        let attended = layer.attention_norm.apply(&attended)?;
        let mut wide = layer.up.apply(&attended)?;
        wide = match self.activation {
            HiddenActivation::GeluErf => wide.f_gelu_("none")?,
            HiddenActivation::GeluTanh => wide.f_gelu_("tanh")?,
            HiddenActivation::Relu => wide.f_relu_()?,
            HiddenActivation::Silu => wide.f_silu_()?,
        };
        let output = layer.down.apply(&wide)?.f_add_(&attended)?;
        layer.output_norm.apply(&output)
    }
}
