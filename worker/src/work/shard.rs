//! Works off one shard: read → submit → write, window by window, then commit.
//!
//! Memory is bounded by the windows: while one is at the server the next is read, and a window's
//! lines are written, slice by slice, before a third is begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_protocol::commit::Commit;
use millrace_protocol::lease::Lease;
use millrace_protocol::plan::{Copies, Plan, ShardIndex};
use millrace_protocol::tally::Tally;
use tokio::sync::OnceCell;

use super::call::Caller;
use super::call::receipts;
use super::carried::CarriedError;
use super::commit::{CommitError, Verdict, commit};
use super::failed::FailedError;
use super::files::{Files, WrittenFiles};
use super::lines::{Lines, PendingRow, lines};
use super::progress::Progress;
use super::routed::{ArmTallies, Router};
use super::selection::SelectionError;
use super::submit::{SubmitError, Submitter};
use super::window::Window;
use super::windows::Windows;
use crate::job::CheckedJob;
use crate::order::BadOrder;
use crate::read::ReadError;
use crate::store::{Location, StoreError, Stores};

/// Bytes of lines that are formatted, compressed and handed to the store at a time. A window's lines
/// may be many times the size of its rows, so they never all exist at once.
const SLICE_BYTES: usize = 1 << 20;

/// Who answers rows.
pub enum Answerer {
    /// One service.
    One(Asker),
    /// Several services, each for the rows of its routes.
    Routed(Box<Router>),
}

/// What asks one service about rows.
pub enum Asker {
    /// Whoever submits rows to the server beside this worker.
    Server(Box<Submitter>),
    /// Whoever makes calls to an API elsewhere.
    Remote(Box<Caller>),
}

/// What all shards of a worker share.
pub struct ShardContext {
    /// The job.
    pub job: CheckedJob,
    /// The plan of the run.
    pub plan: Plan,
    /// Where inputs are read from.
    pub stores: Stores,
    /// Where the output is.
    pub output: Location,
    /// Who answers rows.
    pub answerer: Answerer,
    /// Digest of each model that the server has loaded, by name.
    pub models: BTreeMap<String, String>,
    /// Counts for whoever shows them.
    pub progress: Arc<Progress>,
    /// What duplicates get, once a shard of them is worked off.
    pub copies: OnceCell<Copies>,
}

/// Why a shard was not worked off.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The lease store holds more shards than the plan: they are another run's.
    #[error("the plan has no shard {0}: the lease store holds shards of another run")]
    NotPlanned(ShardIndex),
    /// Its input could not be read.
    #[error("the shard's input could not be read")]
    Read(#[from] ReadError),
    /// It is not known which of its rows are to be run again.
    #[error("the failed rows of the earlier run could not be read")]
    Failed(#[from] FailedError),
    /// An earlier answer could not be carried over.
    #[error("the answers of rows that are not asked could not be copied")]
    Carried(#[from] CarriedError),
    /// It is not known which of its rows are duplicates.
    #[error("the list of the shard's duplicates could not be read")]
    Duplicates(#[source] CarriedError),
    /// It is not known which class of rows it has.
    #[error("the shard's class cannot be told: the plan was changed by hand")]
    Order(#[from] BadOrder),
    /// Its rows could not be answered at all.
    #[error("the shard's rows could not be answered")]
    Submit(#[from] SubmitError),
    /// What was paid for before could not be read.
    #[error("the shard's receipts could not be read")]
    Receipts(#[source] StoreError),
    /// Its part could not be written.
    #[error("the shard's part could not be written")]
    Write(#[from] StoreError),
    /// Its commit could not be decided.
    #[error("the shard could not be committed")]
    Commit(#[from] CommitError),
    /// Working on it hit a fault of this program. What the panic said may quote a row.
    #[error("the worker panicked on the shard; the worker's log names the place")]
    Panicked,
}

impl ShardError {
    /// Whether another delivery cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            ShardError::Read(error) => error.is_permanent(),
            ShardError::Carried(error) | ShardError::Duplicates(error) => error.is_permanent(),
            ShardError::NotPlanned(_)
            | ShardError::Order(_)
            | ShardError::Failed(FailedError::Gone { .. } | FailedError::NotFound(_)) => true,
            ShardError::Failed(FailedError::Commit(_) | FailedError::Lines(_))
            | ShardError::Submit(_)
            | ShardError::Receipts(_)
            | ShardError::Write(_)
            | ShardError::Commit(_)
            | ShardError::Panicked => false,
        }
    }

    /// Whether a store refused or failed, which other credentials may heal: stores have many words for
    /// some that ran out.
    pub fn is_of_stores(&self) -> bool {
        let is_of_read = matches!(self, ShardError::Read(ReadError::Store(_)));
        is_of_read || (self.is_everyones() && !matches!(self, ShardError::Submit(_)))
    }

    /// Whether the shard is not to blame: the server, the output or the rights on the input fail
    /// every shard alike, so none is charged with it.
    pub fn is_everyones(&self) -> bool {
        match self {
            ShardError::Submit(_)
            | ShardError::Receipts(_)
            | ShardError::Write(_)
            | ShardError::Carried(CarriedError::Store(_))
            | ShardError::Duplicates(CarriedError::Store(_))
            | ShardError::Commit(CommitError::Store { .. })
            | ShardError::Read(ReadError::Store(StoreError::Denied { .. })) => true,
            ShardError::NotPlanned(_)
            | ShardError::Read(_)
            | ShardError::Failed(_)
            | ShardError::Order(_)
            | ShardError::Carried(CarriedError::Gone(_) | CarriedError::Unreadable { .. })
            | ShardError::Duplicates(CarriedError::Gone(_) | CarriedError::Unreadable { .. })
            | ShardError::Commit(CommitError::Unreadable { .. })
            | ShardError::Panicked => false,
        }
    }
}

/// A shard whose files are written and whose commit is still to be made.
pub struct Worked {
    commit: Commit,
}

impl From<SelectionError> for ShardError {
    fn from(error: SelectionError) -> Self {
        match error {
            SelectionError::Failed(error) => error.into(),
            SelectionError::Duplicates(error) => Self::Duplicates(error.into()),
            SelectionError::Order(error) => error.into(),
        }
    }
}

/// Reads, submits and writes the shard. Dropping the future abandons the attempt.
pub async fn work(ctx: &Arc<ShardContext>, lease: &Lease) -> Result<Worked, ShardError> {
    let attempt = format!("{:016x}", rand::random::<u64>());
    let mut windows = Windows::open(ctx, lease.shard).await?;
    let mut files = Files::new(ctx, lease.shard, &attempt);
    let (mut tally, mut carried_rows, mut copied_rows) = (windows.receipts.paid(), 0, 0);
    let mut arms = ArmTallies::new(&ctx.job, &windows.receipts);
    while let Some(window) = windows.next().await? {
        let Window {
            rows,
            tokens,
            cost,
            carried,
            copied,
            arms: asked,
        } = window;
        tally.tokens += tokens;
        tally.cost += cost;
        carried_rows += carried;
        copied_rows += copied;
        arms.add(asked);
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let slice;
            (slice, rows) = formatted(ctx.clone(), windows.file.clone(), rows).await;
            tally.rows += slice.rows;
            arms.end(&slice.arms);
            files.write(slice).await?;
        }
    }
    tally.rows.skipped += windows.finish()?;
    let WrittenFiles {
        part,
        errors,
        ledger,
        error_ledger,
    } = files.finish().await?;
    let Tally { rows, tokens, cost } = tally;
    let sha256 = part.as_ref().map(|part| part.sha256.clone());
    Ok(Worked {
        commit: Commit {
            shard: lease.shard,
            epoch: lease.epoch,
            attempt,
            part: part.map(|part| part.relative_path),
            errors: errors.map(|errors| errors.relative_path),
            ledger: ledger.map(|ledger| ledger.relative_path),
            error_ledger: error_ledger.map(|ledger| ledger.relative_path),
            rows,
            carried: carried_rows,
            duplicates: copied_rows,
            tokens,
            cost,
            routes: arms.tallies(),
            sha256,
            models: ctx.models.clone(),
        },
    })
}

/// Makes the shard's results visible, if no other attempt was first. Returns the counts of the
/// commit that stands.
pub async fn settle(ctx: &ShardContext, worked: Worked) -> Result<Tally, ShardError> {
    let Worked { commit: ours } = worked;
    let verdict = commit(&ctx.output, ctx.plan.run, &ours).await?;
    if !matches!(&ctx.answerer, Answerer::One(Asker::Server(_))) {
        let shard = &ctx.plan.shards[ours.shard as usize];
        receipts::discard(&ctx.output, shard.receipts(ctx.plan.run, ours.shard)).await;
    }
    match verdict {
        Verdict::Won => Ok(ours.tally()),
        Verdict::Lost(standing) => {
            tracing::info!(
                shard = ours.shard,
                epoch = ours.epoch,
                standing_epoch = standing.epoch,
                "another attempt committed this shard first: ours is discarded"
            );
            Ok(standing.tally())
        }
    }
}

/// The next lines of `rows`, and the rows that are left. Formatting floats takes milliseconds of
/// pure computing, which the runtime's threads lack.
async fn formatted(
    ctx: Arc<ShardContext>,
    file: String,
    mut rows: std::vec::IntoIter<PendingRow>,
) -> (Lines, std::vec::IntoIter<PendingRow>) {
    let formatting = move || {
        let mut slice = lines(&file, &ctx.job.steps, &mut rows, SLICE_BYTES);
        if ctx.job.output.zstd {
            slice.results = zstd_frame(&slice.results);
        }
        (slice, rows)
    };
    tokio::task::spawn_blocking(formatting)
        .await
        .expect("formatting does not panic")
}

/// One frame per slice: frames end to end are a valid file, and readers may enter at any of them.
fn zstd_frame(lines: &[u8]) -> Vec<u8> {
    if lines.is_empty() {
        return Vec::new();
    }
    zstd::bulk::compress(lines, zstd::DEFAULT_COMPRESSION_LEVEL)
        .expect("compressing into memory cannot fail")
}
