//! A window of a shard's rows, and how it is cut into chunks of similar length. Pure.
//!
//! A server pads a batch to its longest text, so rows travel sorted by length; the window
//! remembers where each row stood, so that the part is written in input order.

use std::ops::Range;

use millrace_protocol::cost::Cost;
use millrace_protocol::ledger::{CarriedRow, DuplicateRow};
use millrace_protocol::row::ReadRow;

use super::lines::PendingRow;
use super::routed::ArmTallies;

/// Bounds of one request to the inference-server.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLimits {
    /// Most rows in a chunk.
    pub rows_max: usize,
    /// Most bytes of text in a chunk, unless a single row is longer.
    pub text_bytes_max: usize,
}

/// Indices into `lengths`, longest first, cut into chunks that keep to `limits`. Longest first,
/// because a server that runs out of memory should do so at the start, and the short ones fill the
/// gaps at the end.
pub fn chunks(lengths: &[usize], limits: ChunkLimits) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index as usize]));
    let mut chunks = Vec::new();
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(first_chunk(lengths, rest, limits).end);
        chunks.push(chunk.to_vec());
        rest = after;
    }
    chunks
}

fn first_chunk(lengths: &[usize], order: &[u32], limits: ChunkLimits) -> Range<usize> {
    let mut bytes = 0;
    let fits = order
        .iter()
        .take(limits.rows_max.max(1))
        .take_while(|&&index| {
            bytes += lengths[index as usize];
            bytes <= limits.text_bytes_max
        });
    0..fits.count().max(1)
}

/// The rows of a window.
pub(super) struct WindowRows {
    pub(super) rows: Vec<ReadRow>,
    /// Those whose answers stand somewhere, by their index.
    pub(super) carried: Vec<(usize, CarriedRow)>,
    /// What each is a duplicate of, if the shard is one of duplicates.
    pub(super) duplicates: Vec<DuplicateRow>,
}

/// A window whose rows are all answered.
pub(super) struct Window {
    pub(super) rows: Vec<PendingRow>,
    pub(super) tokens: u64,
    pub(super) cost: Cost,
    /// Rows whose answers were carried over from an earlier output.
    pub(super) carried: u64,
    /// Duplicates whose results were copied.
    pub(super) copied: u64,
    /// What arms of routes took, and which rows they sent on.
    pub(super) arms: ArmTallies,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_is_in_exactly_one_chunk_and_chunks_keep_their_limits(
            lengths in proptest::collection::vec(0usize..2_000, 0..400),
            rows_max in 1usize..64,
            text_bytes_max in 1usize..4_000,
        ) {
            let chunks = chunks(&lengths, ChunkLimits { rows_max, text_bytes_max });
            let mut seen: Vec<u32> = chunks.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
            for chunk in chunks {
                let bytes: usize = chunk.iter().map(|&index| lengths[index as usize]).sum();
                prop_assert!(chunk.len() <= rows_max);
                prop_assert!(bytes <= text_bytes_max || chunk.len() == 1);
            }
        }
    }

    #[test]
    fn rows_of_similar_length_travel_together() {
        let limits = ChunkLimits {
            rows_max: 2,
            text_bytes_max: 1_000,
        };
        assert_eq!(
            chunks(&[1, 90, 2, 80], limits),
            vec![vec![1, 3], vec![2, 0]]
        );
    }
}
