//! The rows of a shard that are duplicates of earlier ones, wherever these lie. One shard asks about all
//! others of a range, and another, which comes after all that ask, copies what became of those that the
//! duplicates are like.

use millrace_protocol::layout;
use millrace_protocol::ledger::DuplicateRow;
use millrace_protocol::plan::{Duplicates, FIRST_RUN, Plan, Shard};
use millrace_protocol::row::ReadRow;

use super::list::RowList;
use crate::records::RecordsError;
use crate::store::{Location, StoreError};

/// The duplicates of a range, and how a shard takes them.
pub struct DuplicateRows {
    list: RowList<{ DuplicateRow::BYTES }>,
    takes: Duplicates,
}

/// Rows of a shard, some of which may be duplicates.
pub struct Taken {
    /// The rows.
    pub rows: Vec<ReadRow>,
    /// How each compares with the row that it is a duplicate of; empty where none is one.
    pub duplicates: Vec<DuplicateRow>,
}

impl Taken {
    /// All rows of a shard without duplicates.
    pub fn all(rows: Vec<ReadRow>) -> Self {
        Self {
            rows,
            duplicates: Vec::new(),
        }
    }
}

impl DuplicateRows {
    /// Opens the list of a shard's duplicates; `None` where all rows of its range are its own.
    pub async fn open(
        output: &Location,
        plan: &Plan,
        shard: &Shard,
    ) -> Result<Option<Self>, RecordsError> {
        let (Some(dedup), Some(takes)) = (&plan.dedup, shard.duplicates) else {
            return Ok(None);
        };
        let (Duplicates::Without(list) | Duplicates::Only(list)) = takes;
        let path = layout::duplicates(FIRST_RUN, &dedup.planner, list);
        let list = RowList::open(output, &path).await?;
        Ok(Some(Self { list, takes }))
    }

    /// Those of `rows` that the shard takes. `rows` follow those of the call before.
    pub async fn take(&mut self, rows: Vec<ReadRow>) -> Result<Taken, StoreError> {
        let found = self.list.among(&rows).await?;
        let mut listed = found.iter().map(|(index, _)| *index).peekable();
        let wants_listed = match self.takes {
            Duplicates::Without(_) => false,
            Duplicates::Only(_) => true,
        };
        let rows = rows.into_iter().enumerate();
        let rows = rows.filter(|(index, _)| listed.next_if_eq(index).is_some() == wants_listed);
        let rows = rows.map(|(_, row)| row).collect();
        let found = found.into_iter().filter(|_| wants_listed);
        let duplicates = found.map(|(_, row)| DuplicateRow::from_bytes(&row));
        Ok(Taken {
            rows,
            duplicates: duplicates.collect(),
        })
    }
}
