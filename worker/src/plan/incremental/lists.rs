//! Writes what each shard carries over, in the shard's order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use millrace_protocol::layout;
use millrace_protocol::ledger::CarriedRow;
use millrace_protocol::plan::{Plan, ShardIndex};
use millrace_protocol::row::Place;

use super::join::{PLACED_BYTES, placed};
use super::spill::{Records, Spill};
use crate::plan::PlanError;
use crate::store::Location;
use crate::work::part::PartWriter;

/// Rows that are written at a time.
const ROWS_AT_ONCE: usize = 4_096;

/// Writes the lists of all shards below `output`, and counts them in the plan. Each file of
/// `unchanged` is in the order of the plan.
pub(super) async fn write(
    output: &Location,
    plan: &mut Plan,
    planner: &str,
    unchanged: Spill<PLACED_BYTES>,
) -> Result<(), PlanError> {
    let mut merged = Merged::new(unchanged).map_err(PlanError::Spill)?;
    let mut list: Option<(ShardIndex, PartWriter)> = None;
    loop {
        let rows = merged.next(ROWS_AT_ONCE).map_err(PlanError::Spill)?;
        if rows.is_empty() {
            break;
        }
        for of_shard in rows.chunk_by(|(one, _), (other, _)| one == other) {
            let (shard, _) = of_shard[0];
            let is_another = |list: &mut (ShardIndex, PartWriter)| list.0 != shard;
            if let Some((_, ended)) = list.take_if(is_another) {
                ended.finish().await?;
            }
            let (_, writer) = list.get_or_insert_with(|| {
                let path = layout::carried(plan.run, planner, shard);
                (shard, PartWriter::new(output, path))
            });
            let bytes: Vec<u8> = of_shard
                .iter()
                .flat_map(|(_, row)| row.to_bytes())
                .collect();
            writer.write(bytes.into()).await?;
            plan.shards[shard as usize].carried += of_shard.len() as u64;
        }
    }
    if let Some((_, ended)) = list {
        ended.finish().await?;
    }
    Ok(())
}

/// The rows of all files as one, by shard and place.
struct Merged {
    files: Vec<Records<PLACED_BYTES>>,
    /// The next row of each file that has one.
    next: BinaryHeap<Reverse<Next>>,
}

/// The next row of a file.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Next {
    at: (ShardIndex, Place),
    file: usize,
    row: [u8; PLACED_BYTES],
}

impl Merged {
    fn new(unchanged: Spill<PLACED_BYTES>) -> io::Result<Self> {
        let files = unchanged.into_files()?;
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
            let (shard, CarriedRow { place, .. }) = placed(&row);
            let at = (shard, place);
            self.next.push(Reverse(Next { at, file, row }));
        }
        Ok(())
    }

    /// The next rows, at most so many.
    fn next(&mut self, rows_max: usize) -> io::Result<Vec<(ShardIndex, CarriedRow)>> {
        let mut rows = Vec::with_capacity(rows_max);
        while rows.len() < rows_max
            && let Some(Reverse(Next { file, row, .. })) = self.next.pop()
        {
            rows.push(placed(&row));
            self.advance(file)?;
        }
        Ok(rows)
    }
}
