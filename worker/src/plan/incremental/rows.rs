//! The contents of a plan's rows, shard by shard, some shards ahead.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use millrace_protocol::ledger::ContentHash;
use millrace_protocol::plan::{InputFile, Plan, Shard, ShardIndex};
use millrace_protocol::row::{Place, ReadRow};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::content::content;
use crate::filter::Filter;
use crate::job::{CheckedJob, Fields, Routing};
use crate::plan::PlanError;
use crate::read::{self, ReadError};
use crate::store::Stores;

/// Shards that are read at a time.
const SHARDS_AT_ONCE: usize = 4;
/// Rows that are read at a time.
const ROWS_MAX: usize = 1_024;
/// Bytes of them.
const BYTES_MAX: usize = 1 << 20;

/// Some rows of a shard, in order.
pub(super) type Contents = Vec<(ContentHash, Place)>;

/// Reads rows of a job.
#[derive(Clone)]
pub(super) struct Reader {
    stores: Stores,
    fields: Fields,
    filter: Option<Filter>,
    routing: Option<Arc<Routing>>,
    row_bytes_max: usize,
}

/// A shard that is being read.
struct Reading {
    rows: mpsc::Receiver<Contents>,
    task: AbortOnDropHandle<Result<(), ReadError>>,
}

impl Reader {
    /// A reader of what the job asks about.
    pub(super) fn new(stores: &Stores, job: &CheckedJob) -> Self {
        Self {
            stores: stores.with_inline_rows(&job.input),
            fields: Fields {
                join: Vec::new(),
                ..job.input.fields.clone()
            },
            filter: job.input.filter.clone(),
            routing: job.routing.clone(),
            row_bytes_max: job.input.row_bytes_max,
        }
    }

    /// Hands out the contents of all rows that are asked about, in the plan's order. A shard that
    /// cannot be read ends there: it fails for itself when it is worked on.
    pub(super) async fn read(
        &self,
        plan: &Plan,
        mut take: impl FnMut(ShardIndex, Contents) -> io::Result<()>,
    ) -> Result<(), PlanError> {
        let mut ahead: VecDeque<Reading> = VecDeque::new();
        let mut unread = plan.shards.iter();
        for index in 0..plan.shards.len() as ShardIndex {
            while ahead.len() < SHARDS_AT_ONCE
                && let Some(shard) = unread.next()
            {
                ahead.push_back(self.begin(*shard, plan.input_of(shard).clone()));
            }
            let Some(Reading { mut rows, task }) = ahead.pop_front() else {
                break;
            };
            while let Some(rows) = rows.recv().await {
                take(index, rows).map_err(PlanError::Spill)?;
            }
            match task.await.expect("reading neither panics nor is aborted") {
                Err(error) if error.is_permanent() => {
                    tracing::warn!(shard = index, %error, "a shard cannot be read whole");
                }
                read => read?,
            }
        }
        Ok(())
    }

    fn begin(&self, shard: Shard, input: InputFile) -> Reading {
        let (sender, rows) = mpsc::channel(2);
        let reader = self.clone();
        let task = tokio::spawn(async move { reader.read_shard(shard, input, sender).await });
        Reading {
            rows,
            task: AbortOnDropHandle::new(task),
        }
    }

    async fn read_shard(
        &self,
        shard: Shard,
        input: InputFile,
        sender: mpsc::Sender<Contents>,
    ) -> Result<(), ReadError> {
        let (fields, row_bytes_max) = (&self.fields, self.row_bytes_max);
        let mut rows =
            read::open_shard(&self.stores, &input, &shard, fields, row_bytes_max).await?;
        loop {
            let mut batch = rows.next_batch(ROWS_MAX, BYTES_MAX).await?;
            if batch.is_empty() {
                return Ok(());
            }
            if let Some(filter) = &self.filter {
                batch = filter.applied(batch).await.0;
            }
            // A bad row is not asked about.
            let asked = batch.iter().filter_map(|row| match row {
                ReadRow::Row(row) => Some((content(row, self.routing.as_deref()), row.place)),
                ReadRow::Bad { .. } => None,
            });
            if sender.send(asked.collect()).await.is_err() {
                return Ok(());
            }
        }
    }
}
