//! Cuts files into shards.

use futures::{StreamExt, stream};
use millrace_protocol::plan::{Compression, Format, InputFile, Shard, ShardRange};

use super::{PlanError, csv};
use crate::{
    job::Fields,
    read::{
        parquet::{self, RowGroup},
        pinned::PinnedFile,
        view::Wanted,
    },
    store::Stores,
};

/// The most shards that a plan may have; each is a line of `plan.json` and a commit record.
pub const SHARDS_MAX: usize = 1_000_000;

/// Files looked into at a time: enough to hide a remote store's latency.
const FILES_AT_ONCE: usize = 8;

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

/// Cuts `inputs` into shards, in their order, and notes the columns of CSV files.
///
/// JSONL and text are cut at any byte, from the listing alone. CSV takes one pass over the file to
/// find records outside quotes. A compressed file is one shard. Of Parquet only the footer is read:
/// a row group is cut into ranges of rows by its compressed size. An empty file has no shards.
pub async fn cut(
    stores: &Stores,
    inputs: &mut [InputFile],
    options: CutOptions<'_>,
) -> Result<Vec<Shard>, PlanError> {
    let files = stream::iter(inputs.iter_mut()).map(async |input| {
        let (columns, ranges) = cut_file(stores, input, options).await?;
        input.columns = columns;
        Ok::<_, PlanError>(ranges)
    });
    let mut files = std::pin::pin!(files.buffered(FILES_AT_ONCE).enumerate());
    let mut shards = Vec::new();
    while let Some((index, ranges)) = files.next().await {
        let input = u32::try_from(index).map_err(|_| too_many())?;
        shards.extend(ranges?.into_iter().map(|range| Shard::of(input, range)));
        if shards.len() > SHARDS_MAX {
            return Err(too_many());
        }
    }
    Ok(shards)
}

/// For each class a shard of each of these ranges, class by class: shards are worked off in the order of
/// their index.
pub(super) fn by_class(ranges: &[Shard], classes: u8) -> Result<Vec<Shard>, PlanError> {
    if ranges.len() * usize::from(classes) > SHARDS_MAX {
        return Err(too_many());
    }
    let of_class = |class| {
        let ranges = ranges.iter();
        ranges.map(move |range| Shard {
            class: Some(class),
            ..*range
        })
    };
    Ok((0..classes).flat_map(of_class).collect())
}

fn too_many() -> PlanError {
    PlanError::TooManyShards {
        shards_max: SHARDS_MAX,
    }
}

async fn cut_file(
    stores: &Stores,
    input: &InputFile,
    options: CutOptions<'_>,
) -> Result<(Option<Vec<String>>, Vec<ShardRange>), PlanError> {
    let CutOptions {
        shard_bytes_target,
        fields,
        row_bytes_max,
    } = options;
    let (size, wanted) = (input.size_bytes, Wanted::new(fields));
    if size == 0 {
        return Ok((None, Vec::new()));
    }
    let whole = || {
        vec![ShardRange::Bytes {
            start: 0,
            end: u64::MAX,
        }]
    };
    match (input.format, input.compression) {
        (Format::Jsonl | Format::Text, Compression::None) => {
            Ok((None, even(size, shard_bytes_target)))
        }
        (Format::Jsonl | Format::Text, _) => Ok((None, whole())),
        (Format::Csv, compression) => {
            let columns = csv::columns(stores, input, wanted, row_bytes_max).await?;
            let ranges = match (&columns, compression) {
                (None, _) => Vec::new(),
                (Some(_), Compression::None) => {
                    let cuts = csv::cuts(stores, input, shard_bytes_target).await?;
                    between(&cuts, size)
                }
                (Some(_), Compression::Gzip | Compression::Zstd) => whole(),
            };
            Ok((columns, ranges))
        }
        (Format::Parquet, _) => {
            let file = PinnedFile::open(stores, input)?;
            let groups = parquet::row_groups(file, wanted).await?;
            let ranges = groups
                .iter()
                .zip(0..)
                .flat_map(|(group, index)| cut_group(*group, index, shard_bytes_target))
                .collect();
            Ok((None, ranges))
        }
    }
}

/// Equal byte ranges of about the target's size.
fn even(size_bytes: u64, target_bytes: u64) -> Vec<ShardRange> {
    pieces(size_bytes, size_bytes.div_ceil(target_bytes.max(1)))
        .map(|(start, end)| ShardRange::Bytes { start, end })
        .collect()
}

/// The byte ranges between cuts.
fn between(cuts: &[u64], size_bytes: u64) -> Vec<ShardRange> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([size_bytes]);
    starts
        .zip(ends)
        .map(|(start, end)| ShardRange::Bytes { start, end })
        .collect()
}

/// Equal ranges of rows of about the target's compressed size.
fn cut_group(
    group: RowGroup,
    row_group: u32,
    target_bytes: u64,
) -> impl Iterator<Item = ShardRange> {
    let RowGroup { rows, bytes } = group;
    let count = bytes.div_ceil(target_bytes.max(1)).clamp(1, rows.max(1));
    let ranges = pieces(rows, count).map(move |(start, end)| ShardRange::Rows {
        row_group,
        start,
        end,
    });
    ranges.filter(move |_| rows > 0)
}

/// Cuts `0..length` into `count` ranges that differ by at most one.
fn pieces(length: u64, count: u64) -> impl Iterator<Item = (u64, u64)> {
    // One more than is allowed is enough to be refused.
    let count = count.clamp(1, SHARDS_MAX as u64 + 1);
    let at = move |piece| (u128::from(length) * u128::from(piece) / u128::from(count)) as u64;
    (0..count).map(move |piece: u64| (at(piece), at(piece + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(length: u64, count: u64, expected: &[(u64, u64)]) {
        assert_eq!(pieces(length, count).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn pieces_cover_everything_once() {
        check(10, 1, &[(0, 10)]);
        check(10, 3, &[(0, 3), (3, 6), (6, 10)]);
        check(0, 0, &[(0, 0)]);
    }

    #[test]
    fn a_row_group_is_cut_by_its_compressed_size() {
        let cut = |rows, bytes| cut_group(RowGroup { rows, bytes }, 3, 100).collect::<Vec<_>>();
        let range = |start, end| ShardRange::Rows {
            row_group: 3,
            start,
            end,
        };
        assert_eq!(cut(10, 200), [range(0, 5), range(5, 10)]);
        assert_eq!(cut(2, 1000), [range(0, 1), range(1, 2)]);
        assert_eq!(cut(0, 1000), []);
    }

    #[test]
    fn all_ranges_of_a_class_come_before_those_of_the_next_and_the_limit_holds_for_all() {
        let range = |start| {
            Shard::of(
                0,
                ShardRange::Bytes {
                    start,
                    end: start + 1,
                },
            )
        };
        let shards = by_class(&[range(0), range(1)], 3).unwrap();
        let found: Vec<_> = shards.iter().map(|it| (it.class, it.range)).collect();
        let expected = [0, 1, 2].map(|class| [0, 1].map(|at| (Some(class), range(at).range)));
        assert_eq!(found, expected.concat());
        let first: Vec<_> = shards.iter().filter(|it| it.is_first_of_range()).collect();
        assert_eq!(first.len(), 2);
        let many = vec![range(0); SHARDS_MAX / 2 + 1];
        assert!(by_class(&many, 1).is_ok());
        let refused = by_class(&many, 2).unwrap_err();
        assert!(matches!(refused, PlanError::TooManyShards { .. }));
    }

    #[test]
    fn a_huge_file_is_cut_without_being_read() {
        assert_eq!(even(5 << 30, 4 << 20).len(), 1280);
        assert_eq!(even(u64::MAX, 1).len(), SHARDS_MAX + 1);
    }
}
