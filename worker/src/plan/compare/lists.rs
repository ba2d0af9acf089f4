//! Writes lists of rows for shards, each in its shard's order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use millrace_protocol::ledger::place_of;
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::row::Place;

use super::spill::{Records, Spill};
use crate::plan::PlanError;
use crate::store::Location;
use crate::work::part::PartWriter;

/// Rows that are written at a time.
const ROWS_AT_ONCE: usize = 4_096;
/// Bytes of the shard's index before its record.
const SHARD_BYTES: usize = 4;

/// A row in its shard: the shard's index, and a record that begins with the row's place.
type Placed<const N: usize> = [u8; N];

/// Writes a list for each shard with rows among `rows`, below `output` at the path that `path` says, and
/// tells how many rows each has. Each file of `rows` is in the order of shards and places.
pub(in crate::plan) async fn write<const N: usize>(
    output: &Location,
    rows: Spill<N>,
    path: impl Fn(ShardIndex) -> String,
) -> Result<Vec<(ShardIndex, u64)>, PlanError> {
    let mut merged = Merged::new(rows).map_err(PlanError::Spill)?;
    let mut counts: Vec<(ShardIndex, u64)> = Vec::new();
    let mut list: Option<PartWriter> = None;
    loop {
        let rows = merged.next(ROWS_AT_ONCE).map_err(PlanError::Spill)?;
        if rows.is_empty() {
            break;
        }
        for of_shard in rows.chunk_by(|one, other| shard_of(one) == shard_of(other)) {
            let shard = shard_of(&of_shard[0]);
            if counts.last().is_none_or(|(last, _)| *last != shard) {
                if let Some(ended) = list.take() {
                    ended.finish().await?;
                }
                counts.push((shard, 0));
            }
            let list = list.get_or_insert_with(|| PartWriter::new(output, path(shard)));
            let records: Vec<&[u8]> = of_shard.iter().map(|row| &row[SHARD_BYTES..]).collect();
            list.write(records.concat().into()).await?;
            if let Some((_, count)) = counts.last_mut() {
                *count += of_shard.len() as u64;
            }
        }
    }
    if let Some(ended) = list {
        ended.finish().await?;
    }
    Ok(counts)
}

fn shard_of(row: &[u8]) -> ShardIndex {
    let bytes = row[..SHARD_BYTES].try_into();
    ShardIndex::from_le_bytes(bytes.expect("four bytes are four bytes"))
}

/// The rows of all files as one, by shard and place.
struct Merged<const N: usize> {
    files: Vec<Records<N>>,
    /// The next row of each file that has one.
    next: BinaryHeap<Reverse<Next<N>>>,
}

/// The next row of a file.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Next<const N: usize> {
    at: (ShardIndex, Place),
    file: usize,
    row: Placed<N>,
}

impl<const N: usize> Merged<N> {
    fn new(rows: Spill<N>) -> io::Result<Self> {
        let files = rows.into_files()?;
        let mut merged = Self {
            next: BinaryHeap::with_capacity(files.len()),
            files,
        };
        for file in 0..merged.files.len() {
            merged.advance(file)?;
        }
        Ok(merged)
    }

    fn advance(&mut self, file: usize) -> io::Result<()> {
        if let Some(row) = self.files[file].next().transpose()? {
            let at = (shard_of(&row), place_of(&row[SHARD_BYTES..]));
            self.next.push(Reverse(Next { at, file, row }));
        }
        Ok(())
    }

    /// The next rows, at most so many.
    fn next(&mut self, rows_max: usize) -> io::Result<Vec<Placed<N>>> {
        let mut rows = Vec::with_capacity(rows_max);
        while rows.len() < rows_max
            && let Some(Reverse(Next { file, row, .. })) = self.next.pop()
        {
            rows.push(row);
            self.advance(file)?;
        }
        Ok(rows)
    }
}
