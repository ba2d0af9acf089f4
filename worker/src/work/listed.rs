//! Hands out what stands somewhere as the answers of rows that nobody is asked about.

use millrace_protocol::ledger::{CarriedRow, DuplicateRow};
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::result::DuplicateOf;

use super::carried::{Earlier, EarlierRow};
use super::shard::{ShardContext, ShardError};

/// The rows of a window whose answers stand somewhere.
pub(super) struct Listed<'a> {
    pub(super) rows: &'a [(usize, CarriedRow)],
    /// What each row of the window is a duplicate of, if the shard is one of duplicates.
    pub(super) duplicates: &'a [DuplicateRow],
}

/// How many rows have the answers of others.
pub(super) struct Laid {
    pub(super) all: u64,
    /// Those among them whose answer is an error.
    pub(super) failed: u64,
    /// Those that were carried over from an earlier output.
    pub(super) carried: u64,
    /// Duplicates whose results were copied.
    pub(super) copied: u64,
}

impl Listed<'_> {
    /// Hands out the answers, each with the index of its row and, for a duplicate, the row that it is
    /// like.
    pub(super) async fn lay(
        &self,
        ctx: &ShardContext,
        shard: ShardIndex,
        mut lay: impl FnMut(usize, EarlierRow, Option<DuplicateOf>),
    ) -> Result<Laid, ShardError> {
        let (all, mut failed) = (self.rows.len() as u64, 0);
        if !self.rows.is_empty() {
            let earlier = Earlier::open(ctx, shard).await?;
            for (row, earlier) in earlier.answers(self.rows).await? {
                failed += u64::from(earlier.outcome.is_err());
                let duplicate_of = self.duplicates.get(row).map(|duplicate| DuplicateOf {
                    position: earlier.position.clone(),
                    similarity: duplicate.similarity,
                });
                lay(row, earlier, duplicate_of);
            }
        }
        let (carried, copied) = match self.duplicates.is_empty() {
            true => (all, 0),
            false => (0, all - failed),
        };
        Ok(Laid {
            all,
            failed,
            carried,
            copied,
        })
    }
}
