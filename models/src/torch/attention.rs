//! Self-attention over a packed matrix, group by group.

use tch::{Device, Kind, Tensor};

use super::layout::{Group, Layout};

/// From this length on the fused kernel is faster than two batched products and a softmax.
const FUSED_LENGTH_MIN: usize = 48;

/// What the attention of one batch needs in every layer, made once per batch.
pub struct AttentionPlan {
    groups: Vec<PlannedGroup>,
    heads: i64,
    head_size: i64,
    /// Zeros for the unused rows at the end of the matrix, `[unused, hidden]`.
    unused: Option<Tensor>,
}

struct PlannedGroup {
    row: i64,
    tokens: i64,
    sequences: i64,
    length: i64,
    /// For sequences of different length: where the rows of the padded copy come from, and where
    /// the real ones lie in it.
    padded: Option<Padded>,
    /// Added to the scores, broadcast to `[sequences, heads, length, length]`.
    bias: Option<Tensor>,
}

struct Padded {
    /// Row of the matrix for each slot of the copy, `[sequences * length]`.
    gather: Tensor,
    /// Slot of each real token, in order, `[tokens]`.
    scatter: Tensor,
}

/// The shape of the encoder that attention sees.
pub struct AttentionShape<'a> {
    /// Attention heads.
    pub heads: usize,
    /// Numbers per head.
    pub head_size: usize,
    /// Device of the encoder.
    pub device: Device,
    /// Format of the encoder.
    pub kind: Kind,
    /// Bias by relative position, `[buckets, heads]`.
    pub relative: Option<&'a Tensor>,
}

impl AttentionPlan {
    /// Prepares the attention of a batch.
    pub fn new(layout: &Layout, shape: &AttentionShape) -> Result<Self, tch::TchError> {
        let unused = (layout.rows - layout.tokens()) as i64;
        let hidden = (shape.heads * shape.head_size) as i64;
        Ok(Self {
            groups: layout
                .groups
                .iter()
                .map(|group| plan_group(group, shape))
                .collect::<Result<_, _>>()?,
            heads: shape.heads as i64,
            head_size: shape.head_size as i64,
            unused: match unused {
                0 => None,
                rows => Some(Tensor::f_zeros([rows, hidden], (shape.kind, shape.device))?),
            },
        })
    }

    /// Queries (already divided by the square root of the head size), keys and values
    /// `[rows, 3 * hidden]` to context vectors `[rows, hidden]`.
    pub fn attend(&self, qkv: &Tensor) -> Result<Tensor, tch::TchError> {
        let mut outputs = Vec::with_capacity(self.groups.len() + 1);
        for group in &self.groups {
            outputs.push(self.attend_group(qkv, group)?);
        }
        if let Some(unused) = &self.unused {
            outputs.push(unused.shallow_clone());
        }
        match outputs.len() {
            1 => Ok(outputs.remove(0)),
            _ => Tensor::f_cat(&outputs, 0),
        }
    }

    fn attend_group(&self, qkv: &Tensor, group: &PlannedGroup) -> Result<Tensor, tch::TchError> {
        let PlannedGroup {
            row,
            tokens,
            sequences,
            length,
            padded,
            bias,
        } = group;
        let rows = match padded {
            None => qkv.f_narrow(0, *row, *tokens)?,
            Some(padded) => qkv.f_index_select(0, &padded.gather)?,
        };
        let split = rows.f_view([*sequences, *length, 3, self.heads, self.head_size])?;
        let context = match *length as usize {
            FUSED_LENGTH_MIN.. => fused(&split, bias.as_ref())?,
            _ => plain(&split, bias.as_ref())?,
        };
        let context = context
            .f_transpose(1, 2)?
            .f_reshape([*sequences * *length, self.heads * self.head_size])?;
        match padded {
            None => Ok(context),
            Some(padded) => context.f_index_select(0, &padded.scatter),
        }
    }
}

/// `[sequences, length, 3, heads, head_size]` to `[sequences, heads, length, head_size]`, by views
/// alone until the kernel.
fn fused(split: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, tch::TchError> {
    let part = |index| split.f_select(2, index)?.f_transpose(1, 2);
    let (query, key, value) = (part(0)?, part(1)?, part(2)?);
    Tensor::f_scaled_dot_product_attention(&query, &key, &value, bias, 0.0, false, 1.0, false)
}

/// The same by two batched products: one copy brings all three parts into the products' order.
fn plain(split: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, tch::TchError> {
    let parts = split.f_permute([2, 0, 3, 1, 4])?.f_contiguous()?;
    let (query, key, value) = (
        parts.f_select(0, 0)?,
        parts.f_select(0, 1)?,
        parts.f_select(0, 2)?,
    );
    let mut scores = query.f_matmul(&key.f_transpose(2, 3)?)?;
    if let Some(bias) = bias {
        scores = scores.f_add_(bias)?;
    }
    scores.f_softmax(-1, None::<Kind>)?.f_matmul(&value)
}

fn plan_group(group: &Group, shape: &AttentionShape) -> Result<PlannedGroup, tch::TchError> {
    let length = group.length_max();
    let mut bias = match shape.relative {
        Some(table) => Some(relative_bias(table, length, shape.device)?),
        None => None,
    };
    let mut padded = None;
    if !group.is_uniform() {
        let (slots, mask) = pad(group, length, shape)?;
        padded = Some(slots);
        bias = Some(match bias {
            Some(bias) => bias.f_add(&mask)?,
            None => mask,
        });
    }
    Ok(PlannedGroup {
        row: group.row as i64,
        tokens: group.tokens() as i64,
        sequences: group.lengths.len() as i64,
        length: length as i64,
        padded,
        bias,
    })
}

/// The slots of a padded copy, and the mask `[sequences, 1, 1, length]` that hides its padding.
fn pad(
    group: &Group,
    length: usize,
    shape: &AttentionShape,
) -> Result<(Padded, Tensor), tch::TchError> {
    let mut gather = Vec::with_capacity(group.lengths.len() * length);
    let mut scatter = Vec::with_capacity(group.tokens());
    let mut mask = Vec::with_capacity(gather.capacity());
    let mut first = group.row;
    for &own in &group.lengths {
        for position in 0..length {
            let is_real = position < own;
            if is_real {
                scatter.push(gather.len() as i64);
            }
            // Padding repeats the first token: a finite vector, hidden by the mask.
            gather.push((first + if is_real { position } else { 0 }) as i64);
            mask.push(if is_real { 0.0_f32 } else { f32::NEG_INFINITY });
        }
        first += own;
    }
    let mask = Tensor::f_from_slice(&mask)?
        .f_view([group.lengths.len() as i64, 1, 1, length as i64])?
        .f_to_device(shape.device)?
        .f_to_kind(shape.kind)?;
    let padded = Padded {
        gather: Tensor::f_from_slice(&gather)?.f_to_device(shape.device)?,
        scatter: Tensor::f_from_slice(&scatter)?.f_to_device(shape.device)?,
    };
    Ok((padded, mask))
}

/// The bias of every pair of positions, `[1, heads, length, length]`.
fn relative_bias(table: &Tensor, length: usize, device: Device) -> Result<Tensor, tch::TchError> {
    let buckets = table.size()[0];
    let pairs: Vec<i64> = (0..length as i64)
        .flat_map(|query| (0..length as i64).map(move |key| relative_bucket(key - query, buckets)))
        .collect();
    let side = length as i64;
    table
        .f_index_select(0, &Tensor::f_from_slice(&pairs)?.f_to_device(device)?)?
        .f_view([1, side, side, -1])?
        .f_permute([0, 3, 1, 2])?
        .f_contiguous()
}

/// The bucket of a key that lies `distance` tokens after its query: half the buckets for each
/// direction, single distances first, then logarithmic steps up to 128.
fn relative_bucket(distance: i64, buckets: i64) -> i64 {
    const DISTANCE_MAX: f32 = 128.0;
    let half = buckets / 2;
    let exact = half / 2;
    let direction = if distance > 0 { half } else { 0 };
    let away = distance.abs();
    if away < exact {
        return direction + away;
    }
    // In 32 bits and in this order, as the reference computes it: bucket borders must agree.
    let steps = (away as f32 / exact as f32).ln() / (DISTANCE_MAX / exact as f32).ln()
        * (half - exact) as f32;
    direction + (exact + steps as i64).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_exact_near_by_and_saturate_far_away() {
        let near: Vec<i64> = (-3..=3).map(|d| relative_bucket(d, 32)).collect();
        assert_eq!(near, [3, 2, 1, 0, 17, 18, 19]);
        assert_eq!(relative_bucket(-8, 32), 8);
        assert_eq!(relative_bucket(-1000, 32), 15);
        assert_eq!(relative_bucket(1000, 32), 31);
    }
}
