//! Cuts files into shards.

use millrace_protocol::plan::{Compression, Format, InputFile, Shard, ShardRange};

use super::PlanError;
use crate::{job::Fields, store::Stores};

/// The most shards that a plan may have; each is a line of `plan.json` and a commit record.
pub const SHARDS_MAX: usize = 1_000_000;

/// How files are cut.
#[derive(Debug, Clone, Copy)]
pub struct CutOptions<'a> {
    /// Size of a shard in bytes of its file.
    pub shard_bytes_target: u64,
    /// The fields that the job names.
    pub fields: &'a Fields,
    /// Longest row in bytes.
    pub row_bytes_max: usize,
}

/// Cuts `inputs` into shards.
pub async fn cut(
    _stores: &Stores,
    inputs: &mut [InputFile],
    options: CutOptions<'_>,
) -> Result<Vec<Shard>, PlanError> {
    let mut shards = Vec::new();
    for (index, input) in inputs.iter_mut().enumerate() {
        let index = index as u32;
        let ranges = match (input.format, input.compression) {
            (_, _) if input.size_bytes == 0 => Vec::new(),
            (_, Compression::Gzip | Compression::Zstd) => {
                vec![ShardRange::Bytes { start: 0, end: u64::MAX }]
            }
            (Format::Jsonl | Format::Text | Format::Csv | Format::Parquet, Compression::None) => {
                even(input.size_bytes, options.shard_bytes_target)
            }
        };
        shards.extend(ranges.into_iter().map(|range| Shard { input: index, range }));
        if shards.len() > SHARDS_MAX {
            return Err(PlanError::TooManyShards { shards_max: SHARDS_MAX });
        }
    }
    Ok(shards)
}

/// Equal byte ranges of about the target's size.
fn even(size_bytes: u64, target_bytes: u64) -> Vec<ShardRange> {
    let pieces = size_bytes.div_ceil(target_bytes.max(1)).min(SHARDS_MAX as u64 + 1);
    let at = |piece: u64| (u128::from(size_bytes) * u128::from(piece) / u128::from(pieces)) as u64;
    (0..pieces).map(|piece| ShardRange::Bytes { start: at(piece), end: at(piece + 1) }).collect()
}
