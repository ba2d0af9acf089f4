//! How a packed batch lies in memory while it is computed. Pure: no tensor is made here.
//!
//! The linears run over one `[rows, hidden]` matrix without padding between sequences; only the
//! attention needs sequences side by side. Sequences are sorted by length, and those of equal
//! length form a group that is a plain view of the matrix. Groups too small to be worth their
//! operations are merged with the next lengths and gathered into a padded copy.

use crate::backend::PackedBatch;

/// When lengths share a group although they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupPolicy {
    /// A group below this many tokens takes in the next length, padded.
    pub merge_tokens_max: usize,
    /// Padded tokens per hundred real ones that a merged group may have.
    pub padding_percent_max: usize,
}

/// Sequences whose attention is computed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// First row of the group in the matrix.
    pub row: usize,
    /// Length of each sequence; all equal unless the group was merged.
    pub lengths: Vec<usize>,
}

impl Group {
    /// Length of the longest sequence.
    pub fn length_max(&self) -> usize {
        self.lengths.last().copied().unwrap_or(0)
    }

    /// Rows that the group covers.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Whether every sequence has the same length, so that no padding or mask is needed.
    pub fn is_uniform(&self) -> bool {
        self.lengths.first() == self.lengths.last()
    }
}

/// A batch in the order in which it is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Input index of each computed sequence; lengths ascend.
    pub order: Vec<usize>,
    /// First row of each computed sequence, and one past the last row at the end.
    pub starts: Vec<usize>,
    /// Token id per row, `[rows]`.
    pub token_ids: Vec<i64>,
    /// Position id per row, `[rows]`.
    pub position_ids: Vec<i64>,
    /// Groups, covering the real rows in order.
    pub groups: Vec<Group>,
    /// Rows of the matrix: the tokens, and unused rows up to a round number, so that kernels made
    /// for one shape are found again for the next batch.
    pub rows: usize,
}

/// The limits of a model that a batch must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are below it.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub tokens_max: usize,
    /// How positions are counted.
    pub positions: Positions,
}

/// How positions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// 0, 1, 2, ….
    FromZero,
    /// From one after this padding id; a padding token itself has the padding's position and is
    /// not counted.
    AfterPadding(usize),
}

/// Why a batch does not fit the model. A caller that encodes with the model's own tokeniser and
/// length never sees one; checking here keeps a device from reading past its tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A token id has no embedding.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the word embeddings.
        vocab_size: usize,
    },
    /// A sequence reaches past the position embeddings.
    #[error("a sequence of {tokens} tokens is longer than the model's {tokens_max}")]
    TooLong {
        /// Length of the sequence.
        tokens: usize,
        /// Longest that the model takes.
        tokens_max: usize,
    },
}

impl Layout {
    /// Lays out `batch` for a model with `limits`.
    pub fn plan(
        batch: &PackedBatch,
        limits: Limits,
        policy: GroupPolicy,
    ) -> Result<Self, LayoutError> {
        let mut order: Vec<usize> = (0..batch.sequences()).collect();
        // Stable, so that equal batches are computed in equal order.
        order.sort_by_key(|&index| batch.length(index));
        let rows = round_rows(batch.tokens());
        let mut token_ids = Vec::with_capacity(rows);
        let mut position_ids = Vec::with_capacity(rows);
        let mut starts = Vec::with_capacity(order.len() + 1);
        for &index in &order {
            starts.push(token_ids.len());
            let sequence = batch.sequence(index);
            check(sequence, limits)?;
            token_ids.extend(sequence.iter().map(|&id| i64::from(id)));
            push_positions(sequence, limits.positions, &mut position_ids);
        }
        starts.push(token_ids.len());
        // Unused rows look up row 0 of the tables, which every table has.
        token_ids.resize(rows, 0);
        position_ids.resize(rows, 0);
        let lengths = starts.windows(2).map(|pair| pair[1] - pair[0]);
        let groups = group(lengths, policy);
        Ok(Self {
            order,
            starts,
            token_ids,
            position_ids,
            groups,
            rows,
        })
    }

    /// Rows that hold tokens.
    pub fn tokens(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Puts one row of `width` numbers per sequence back into the order of the input.
    pub fn restore_sequences(&self, computed: &[f32], width: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.order.len() * width];
        for (row, &index) in computed.chunks_exact(width).zip(&self.order) {
            values[index * width..(index + 1) * width].copy_from_slice(row);
        }
        values
    }

    /// Puts one row of `width` numbers per token back into the order of `batch`.
    pub fn restore_tokens(&self, batch: &PackedBatch, computed: &[f32], width: usize) -> Vec<f32> {
        let mut values = vec![0.0; batch.tokens() * width];
        for (&index, start) in self.order.iter().zip(&self.starts) {
            let numbers = batch.length(index) * width;
            let from = start * width;
            let to = batch.offsets[index] as usize * width;
            values[to..to + numbers].copy_from_slice(&computed[from..from + numbers]);
        }
        values
    }
}

fn check(sequence: &[u32], limits: Limits) -> Result<(), LayoutError> {
    let Limits {
        vocab_size,
        tokens_max,
        positions: _,
    } = limits;
    if sequence.len() > tokens_max {
        return Err(LayoutError::TooLong {
            tokens: sequence.len(),
            tokens_max,
        });
    }
    match sequence.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(LayoutError::TokenId { id, vocab_size }),
        None => Ok(()),
    }
}

fn push_positions(sequence: &[u32], positions: Positions, out: &mut Vec<i64>) {
    match positions {
        Positions::FromZero => out.extend(0..sequence.len() as i64),
        Positions::AfterPadding(padding) => {
            let mut position = padding as i64;
            out.extend(sequence.iter().map(|&id| {
                if id as usize == padding {
                    return padding as i64;
                }
                position += 1;
                position
            }));
        }
    }
}

/// Rounds up by at most 1/16, coarser as batches grow.
fn round_rows(tokens: usize) -> usize {
    let step = match tokens {
        0..=15 => 1,
        16..=255 => 8,
        256..=1023 => 16,
        _ => 64,
    };
    tokens.next_multiple_of(step)
}

/// Cuts ascending lengths into groups.
fn group(lengths: impl Iterator<Item = usize>, policy: GroupPolicy) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut row = 0;
    for length in lengths {
        match groups.last_mut() {
            Some(last) if last.length_max() == length || may_merge(last, length, policy) => {
                last.lengths.push(length);
            }
            _ => groups.push(Group {
                row,
                lengths: vec![length],
            }),
        }
        row += length;
    }
    groups
}

fn may_merge(group: &Group, length: usize, policy: GroupPolicy) -> bool {
    let GroupPolicy {
        merge_tokens_max,
        padding_percent_max,
    } = policy;
    let tokens = group.tokens();
    let padding = group.lengths.len() * length - tokens;
    tokens < merge_tokens_max && padding * 100 <= tokens * padding_percent_max
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: GroupPolicy = GroupPolicy {
        merge_tokens_max: 8,
        padding_percent_max: 50,
    };

    fn limits(positions: Positions) -> Limits {
        Limits {
            vocab_size: 100,
            tokens_max: 20,
            positions,
        }
    }

    fn plan(sequences: &[&[u32]], positions: Positions) -> Result<Layout, LayoutError> {
        let batch = PackedBatch::pack(sequences.iter().copied());
        Layout::plan(&batch, limits(positions), POLICY)
    }

    #[test]
    fn equal_lengths_form_a_group_without_padding() {
        let layout = plan(&[&[1; 9], &[2; 2], &[3; 9]], Positions::FromZero).expect("fits");
        assert_eq!(layout.order, [1, 0, 2]);
        assert_eq!(layout.starts, [0, 2, 11, 20]);
        assert_eq!(layout.groups.len(), 2);
        assert!(layout.groups.iter().all(Group::is_uniform));
        assert_eq!(layout.rows, 24, "rows are rounded up");
    }

    #[test]
    fn small_groups_take_in_the_next_length() {
        let layout = plan(&[&[1; 4], &[2; 5], &[3; 6]], Positions::FromZero).expect("fits");
        assert_eq!(
            layout.groups,
            [
                Group {
                    row: 0,
                    lengths: vec![4, 5]
                },
                Group {
                    row: 9,
                    lengths: vec![6]
                },
            ]
        );
    }

    #[test]
    fn positions_after_padding_skip_padding_tokens() {
        let layout = plan(&[&[0, 1, 7, 2]], Positions::AfterPadding(1)).expect("fits");
        assert_eq!(layout.position_ids, [2, 1, 3, 4]);
    }

    #[test]
    fn what_the_tables_do_not_reach_is_refused() {
        assert_eq!(
            plan(&[&[1, 100]], Positions::FromZero),
            Err(LayoutError::TokenId {
                id: 100,
                vocab_size: 100
            })
        );
        assert_eq!(
            plan(&[&[1; 21]], Positions::FromZero),
            Err(LayoutError::TooLong {
                tokens: 21,
                tokens_max: 20
            })
        );
    }

    proptest::proptest! {
        #[test]
        fn every_token_is_computed_once_and_comes_back_in_place(
            lengths in proptest::collection::vec(1_usize..20, 0..40),
        ) {
            let mut next = 0_u32;
            let sequences: Vec<Vec<u32>> = lengths
                .iter()
                .map(|&length| (0..length).map(|_| { next += 1; next % 100 }).collect())
                .collect();
            let batch = PackedBatch::pack(sequences.iter().map(Vec::as_slice));
            let layout = Layout::plan(&batch, limits(Positions::FromZero), POLICY).expect("fits");
            let grouped: usize = layout.groups.iter().map(Group::tokens).sum();
            proptest::prop_assert_eq!(grouped, batch.tokens());
            proptest::prop_assert!(layout.rows >= batch.tokens());
            let computed: Vec<f32> = layout.token_ids.iter().map(|&id| id as f32).collect();
            let restored = layout.restore_tokens(&batch, &computed, 1);
            let expected: Vec<f32> = batch.token_ids.iter().map(|&id| id as f32).collect();
            proptest::prop_assert_eq!(restored, expected);
        }
    }
}
