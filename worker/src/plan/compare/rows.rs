//! The contents of a plan's rows, shard by shard, some shards ahead.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use millrace_protocol::ledger::ContentHash;
use millrace_protocol::plan::{InputFile, Plan, Shard, ShardIndex};
use millrace_protocol::row::{Place, ReadRow, Row};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::content::content;
use crate::job::{CheckedJob, Fields, Input, Routing};
use crate::plan::PlanError;
use crate::read;
use crate::store::{Location, Stores};
use crate::work::selection::{Selected, Selection};

/// Shards that are read at a time.
const SHARDS_AT_ONCE: usize = 4;
/// Rows that are read at a time.
const ROWS_MAX: usize = 1_024;
/// Bytes of them.
const BYTES_MAX: usize = 1 << 20;

/// Some rows of a shard, in order, with what was made of what is asked about each.
pub(in crate::plan) type Contents<T> = Vec<(ContentHash, Place, T)>;

/// Reads rows of a job.
pub(in crate::plan) struct RowReader<T> {
    reading: Arc<RowReading<T>>,
}

/// What reading of all shards shares.
struct RowReading<T> {
    stores: Stores,
    output: Location,
    input: Input,
    routing: Option<Arc<Routing>>,
    make: Box<dyn Fn(&Row) -> T + Send + Sync>,
}

/// A shard that is being read.
struct Reading<T> {
    rows: mpsc::Receiver<Contents<T>>,
    task: AbortOnDropHandle<Result<(), PlanError>>,
}

impl<T: Send + 'static> RowReader<T> {
    /// A reader of what the job asks about, which makes something of it.
    pub(in crate::plan) fn new(
        stores: &Stores,
        job: &CheckedJob,
        make: impl Fn(&Row) -> T + Send + Sync + 'static,
    ) -> Result<Self, PlanError> {
        let reading = RowReading {
            stores: stores.with_inline_rows(&job.input),
            output: stores.open(&job.output.uri)?,
            input: Input {
                fields: Fields {
                    join: Vec::new(),
                    ..job.input.fields.clone()
                },
                ..job.input.clone()
            },
            routing: job.routing.clone(),
            make: Box::new(make),
        };
        Ok(Self {
            reading: Arc::new(reading),
        })
    }

    /// Hands out the contents of all rows that are asked about, in the plan's order. A shard that
    /// cannot be read ends there: it fails for itself when it is worked on.
    pub(in crate::plan) async fn read(
        &self,
        plan: &Plan,
        mut take: impl FnMut(ShardIndex, Contents<T>) -> io::Result<()>,
    ) -> Result<(), PlanError> {
        // What duplicates get is found out when all others have ended.
        let shards = plan.shards.iter().zip(0..);
        let shards = shards.filter(|(shard, _)| !shard.is_of_duplicates());
        let mut unread = shards.clone();
        let mut ahead: VecDeque<Reading<T>> = VecDeque::new();
        for (_, index) in shards {
            while ahead.len() < SHARDS_AT_ONCE
                && let Some((shard, _)) = unread.next()
            {
                ahead.push_back(self.begin(plan, shard).await?);
            }
            let Some(Reading { mut rows, task }) = ahead.pop_front() else {
                break;
            };
            while let Some(rows) = rows.recv().await {
                take(index, rows).map_err(PlanError::Spill)?;
            }
            match task.await.expect("reading neither panics nor is aborted") {
                Err(PlanError::Read(error)) if error.is_permanent() => {
                    tracing::warn!(shard = index, %error, "a shard cannot be read whole");
                }
                read => read?,
            }
        }
        Ok(())
    }

    async fn begin(&self, plan: &Plan, shard: &Shard) -> Result<Reading<T>, PlanError> {
        let (sender, rows) = mpsc::channel(2);
        let (reading, shard, input) = (self.reading.clone(), *shard, plan.input_of(shard).clone());
        let selection = Selection::open(&reading.output, &reading.input, plan, &shard).await?;
        let task = tokio::spawn(reading.read_shard(shard, input, selection, sender));
        Ok(Reading {
            rows,
            task: AbortOnDropHandle::new(task),
        })
    }
}

impl<T: Send + 'static> RowReading<T> {
    async fn read_shard(
        self: Arc<Self>,
        shard: Shard,
        input: InputFile,
        mut selection: Selection,
        sender: mpsc::Sender<Contents<T>>,
    ) -> Result<(), PlanError> {
        let (fields, row_bytes_max) = (selection.fields(), self.input.row_bytes_max);
        let mut rows =
            read::open_shard(&self.stores, &input, &shard, fields, row_bytes_max).await?;
        loop {
            let batch = rows.next_batch(ROWS_MAX, BYTES_MAX).await?;
            if batch.is_empty() {
                return Ok(());
            }
            let Selected { rows: batch, .. } = selection.among(batch).await?;
            let reading = self.clone();
            // Comparing long texts takes milliseconds of pure computing.
            let made = tokio::task::spawn_blocking(move || reading.contents(&batch)).await;
            let made = made.expect("hashing does not panic");
            if sender.send(made).await.is_err() {
                return Ok(());
            }
        }
    }

    fn contents(&self, rows: &[ReadRow]) -> Contents<T> {
        // A bad row is not asked about.
        let asked = rows.iter().filter_map(|row| match row {
            ReadRow::Row(row) => {
                let content = content(row, self.routing.as_deref());
                Some((content, row.place, (self.make)(row)))
            }
            ReadRow::Bad { .. } => None,
        });
        asked.collect()
    }
}
