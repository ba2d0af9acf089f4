//! Which rows of a shard's range are the shard's. What is not is either another shard's, or, where the
//! filter leaves it out, nobody's.

use millrace_protocol::ledger::DuplicateRow;
use millrace_protocol::plan::{Plan, Shard};
use millrace_protocol::row::ReadRow;

use super::duplicates::{DuplicateRows, Taken};
use super::failed::{FailedError, FailedRows};
use crate::filter::Filter;
use crate::job::{Fields, Input};
use crate::order::{self, BadOrder, Order};
use crate::records::RecordsError;
use crate::store::Location;

/// Why it is not known which rows are a shard's.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// The failed rows of an earlier run could not be read.
    #[error(transparent)]
    Failed(#[from] FailedError),
    /// The list of duplicates could not be read.
    #[error(transparent)]
    Duplicates(#[from] RecordsError),
    /// The plan's order cannot be used.
    #[error("the plan was changed by hand")]
    Order(#[from] BadOrder),
}

/// Selects the rows of one shard.
pub struct Selection {
    /// Only these, where a run runs failed rows again.
    failed: Option<FailedRows>,
    duplicates: Option<DuplicateRows>,
    /// Only those of this class.
    class: Option<(Order, u8)>,
    filter: Option<Filter>,
    fields: Fields,
}

/// Some rows of a shard.
pub struct Selected {
    /// The rows.
    pub rows: Vec<ReadRow>,
    /// What each is a duplicate of, if the shard is one of duplicates.
    pub duplicates: Vec<DuplicateRow>,
    /// How many more the filter left out.
    pub skipped: u64,
}

impl Selection {
    /// Opens the lists that name rows of `shard`.
    pub async fn open(
        output: &Location,
        input: &Input,
        plan: &Plan,
        shard: &Shard,
    ) -> Result<Self, SelectionError> {
        let failed = match shard.failed_in {
            Some(earlier) => Some(FailedRows::open(output, earlier).await?),
            None => None,
        };
        let order = Order::new(&plan.order)?;
        Ok(Self {
            duplicates: DuplicateRows::open(output, plan, shard).await?,
            // A duplicate is none that the filter leaves out.
            filter: (input.filter.clone()).filter(|_| !shard.is_of_duplicates()),
            fields: order::fields(order.as_ref(), &input.fields),
            // A list of rows that the shard consists of names those of its class alone.
            class: (order.zip(shard.class))
                .filter(|_| failed.is_none() && !shard.is_of_duplicates()),
            failed,
        })
    }

    /// The fields by which rows are read to be selected.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Those of `rows` that are the shard's. `rows` follow those of the call before.
    pub async fn among(&mut self, rows: Vec<ReadRow>) -> Result<Selected, SelectionError> {
        let rows = match &mut self.failed {
            Some(failed) => failed.keep(rows).await?,
            None => rows,
        };
        let Taken { rows, duplicates } = match &mut self.duplicates {
            Some(list) => list.take(rows).await.map_err(RecordsError::from)?,
            None => Taken::all(rows),
        };
        let rows = match &self.class {
            Some((order, class)) => order.only(*class, rows).await,
            None => rows,
        };
        let (rows, skipped) = match &self.filter {
            Some(filter) => filter.applied(rows).await,
            None => (rows, 0),
        };
        Ok(Selected {
            rows,
            duplicates,
            skipped,
        })
    }

    /// Makes sure that every failed row was met.
    pub fn finish(self) -> Result<(), SelectionError> {
        match self.failed {
            Some(failed) => Ok(failed.finish()?),
            None => Ok(()),
        }
    }
}
