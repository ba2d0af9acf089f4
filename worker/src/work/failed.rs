//! The rows of a shard that failed in an earlier run: a run that runs them again reads the range once
//! more and keeps only these. Both go by the input's order, so neither is held in memory.

use millrace_protocol::plan::ShardOfRun;
use millrace_protocol::row::{Place, ReadRow};

use super::commit::{self, CommitError};
use crate::output::{ErrorLines, OutputError};
use crate::store::Location;

/// Why it is not known which rows failed.
#[derive(Debug, thiserror::Error)]
pub enum FailedError {
    /// The earlier shard's commit could not be read.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The earlier shard's error lines could not be read.
    #[error(transparent)]
    Lines(#[from] OutputError),
    /// Somebody removed the commit or its error file's name.
    #[error("run {run} has no failed rows of shard {shard}: the output was changed by hand")]
    Gone {
        /// The earlier run.
        run: u32,
        /// Its shard.
        shard: u32,
    },
    /// A row that failed is not in the input.
    #[error("the row at {0:?} failed in an earlier run and is not in the input any more")]
    NotFound(Place),
}

/// The places of the failed rows of an earlier shard, in the input's order.
pub struct FailedRows {
    lines: ErrorLines,
    next: Option<Place>,
}

impl FailedRows {
    /// Opens the error lines of an earlier shard.
    pub async fn open(output: &Location, earlier: ShardOfRun) -> Result<Self, FailedError> {
        let ShardOfRun { run, shard } = earlier;
        let commit = commit::read(output, run, shard).await?;
        let errors = commit.and_then(|commit| commit.errors);
        let errors = errors.ok_or(FailedError::Gone { run, shard })?;
        let mut lines = ErrorLines::open(output, shard, errors).await?;
        let next = place(&mut lines).await?;
        Ok(Self { lines, next })
    }

    /// Keeps the rows that failed. `rows` follow those of the call before.
    pub async fn keep(&mut self, rows: Vec<ReadRow>) -> Result<Vec<ReadRow>, FailedError> {
        let mut kept = Vec::new();
        for row in rows {
            match self.next {
                Some(next) if next == row.place() => {
                    kept.push(row);
                    self.next = place(&mut self.lines).await?;
                }
                Some(next) if next < row.place() => return Err(FailedError::NotFound(next)),
                Some(_) | None => {}
            }
        }
        Ok(kept)
    }

    /// Makes sure that every failed row was met.
    pub fn finish(self) -> Result<(), FailedError> {
        self.next
            .map_or(Ok(()), |next| Err(FailedError::NotFound(next)))
    }
}

async fn place(lines: &mut ErrorLines) -> Result<Option<Place>, OutputError> {
    Ok(lines.next().await?.map(|line| line.position.place))
}
