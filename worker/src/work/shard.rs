//! Works off one shard: read → submit → write, window by window, then commit.
//!
//! Memory is bounded by the windows: while one is at the server the next is read, and a window's
//! lines are written, slice by slice, before a third is begun.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use millrace_protocol::commit::Commit;
use millrace_protocol::cost::Cost;
use millrace_protocol::lease::Lease;
use millrace_protocol::ledger::CarriedRow;
use millrace_protocol::plan::{Copies, Plan, ShardIndex};
use millrace_protocol::tally::{Rows, Tally};
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::call::Caller;
use super::call::receipts::{self, Receipts};
use super::carried::{self, CarriedError, EarlierRow};
use super::chunked::{self, Chunked};
use super::commit::{CommitError, Verdict, commit};
use super::duplicates::{DuplicateRows, Taken};
use super::failed::{FailedError, FailedRows};
use super::files::{Files, WrittenFiles};
use super::lines::{Lines, PendingRow, lines};
use super::listed::{Laid, Listed};
use super::progress::Progress;
use super::routed::{ArmTallies, Router};
use super::submit::{Answered, SubmitError, Submitter};
use super::window::{ChunkLimits, Window, WindowRows, chunks};
use crate::job::CheckedJob;
use crate::read::{self, ReadError};
use crate::store::{Location, StoreError, Stores};

/// Rows in a window: enough chunks to sort by length and keep the server's queue full.
const WINDOW_ROWS_MAX: usize = 2_048;
/// Bytes of rows in a window.
const WINDOW_BYTES_MAX: usize = 4 << 20;
/// Windows of a shard in flight: one at the server, one behind it so that the queue never empties.
const WINDOWS_MAX: usize = 2;
/// Bytes of lines that are formatted, compressed and handed to the store at a time. A window's lines
/// may be many times the size of its rows, so they never all exist at once.
const SLICE_BYTES: usize = 1 << 20;
/// About one batch of 4,096 tokens in text, at some four bytes a token.
pub(super) const CHUNK_LIMITS: ChunkLimits = ChunkLimits {
    rows_max: 512,
    text_bytes_max: 16 << 10,
};

/// Who answers rows.
pub enum Answerer {
    /// A server beside this worker.
    Server(Box<Submitter>),
    /// An API elsewhere.
    Remote(Box<Caller>),
    /// Several services, each for the rows of its routes.
    Routed(Box<Router>),
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
    /// Working on it hit a fault of this program.
    #[error("the worker panicked on the shard: {0}")]
    Panicked(String),
}

impl ShardError {
    /// Whether another delivery cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            ShardError::Read(error) => error.is_permanent(),
            ShardError::Carried(error) | ShardError::Duplicates(error) => error.is_permanent(),
            ShardError::NotPlanned(_)
            | ShardError::Failed(FailedError::Gone { .. } | FailedError::NotFound(_)) => true,
            ShardError::Failed(FailedError::Commit(_) | FailedError::Lines(_))
            | ShardError::Submit(_)
            | ShardError::Receipts(_)
            | ShardError::Write(_)
            | ShardError::Commit(_)
            | ShardError::Panicked(_) => false,
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
            | ShardError::Carried(CarriedError::Gone(_) | CarriedError::Unreadable { .. })
            | ShardError::Duplicates(CarriedError::Gone(_) | CarriedError::Unreadable { .. })
            | ShardError::Commit(CommitError::Unreadable { .. })
            | ShardError::Panicked(_) => false,
        }
    }
}

/// A shard whose files are written and whose commit is still to be made.
pub struct Worked {
    commit: Commit,
}

/// Reads, submits and writes the shard. Dropping the future abandons the attempt.
pub async fn work(ctx: &Arc<ShardContext>, lease: &Lease) -> Result<Worked, ShardError> {
    let run = ctx.plan.run;
    let shard = ctx.plan.shards.get(lease.shard as usize);
    let shard = shard.ok_or(ShardError::NotPlanned(lease.shard))?;
    let input = ctx.plan.input_of(shard);
    let job = &ctx.job;
    let attempt = format!("{:016x}", rand::random::<u64>());
    let mut rows_in = read::open_shard(
        &ctx.stores,
        input,
        shard,
        &job.input.fields,
        job.input.row_bytes_max,
    )
    .await?;
    let mut only = match shard.failed_in {
        Some(earlier) => Some(FailedRows::open(&ctx.output, earlier).await?),
        None => None,
    };
    let duplicates = DuplicateRows::open(&ctx.output, &ctx.plan, shard).await;
    let mut duplicates = duplicates.map_err(|error| ShardError::Duplicates(error.into()))?;
    let mut carried = carried::open_list(ctx, lease.shard).await?;
    let mut files = Files::new(ctx, lease.shard, &attempt);
    let receipts = match &ctx.answerer {
        Answerer::Server(_) => Receipts::none(&ctx.output, run, lease.shard),
        Answerer::Remote(_) | Answerer::Routed(_) => {
            let receipts = Receipts::open(&ctx.output, run, lease.shard).await;
            receipts.map_err(ShardError::Receipts)?
        }
    };
    let (mut tally, mut carried_rows, mut copied_rows) = (receipts.paid(), 0, 0);
    let mut arms = ArmTallies::new(job, &receipts);
    let chunking = job.input.chunking.as_ref();
    let window_bytes_max = chunking.map_or(WINDOW_BYTES_MAX, |chunking| {
        chunking.window_bytes(WINDOW_BYTES_MAX)
    });
    let receipts = Arc::new(receipts);
    let mut windows: VecDeque<AbortOnDropHandle<Result<Window, ShardError>>> = VecDeque::new();
    let mut ended = false;
    loop {
        while !ended && windows.len() < WINDOWS_MAX {
            let rows = rows_in
                .next_batch(WINDOW_ROWS_MAX, window_bytes_max)
                .await?;
            ended = rows.is_empty();
            let rows = match &mut only {
                Some(failed) => failed.keep(rows).await?,
                None => rows,
            };
            let Taken { rows, duplicates } = match &mut duplicates {
                Some(list) => {
                    let taken = list.take(rows).await.map_err(CarriedError::from);
                    taken.map_err(ShardError::Duplicates)?
                }
                None => Taken::all(rows),
            };
            let (rows, skipped) = match &job.input.filter {
                // A duplicate is none that the filter leaves out.
                Some(filter) if !shard.is_of_duplicates() => filter.applied(rows).await,
                Some(_) | None => (rows, 0),
            };
            tally.rows.skipped += skipped;
            if !rows.is_empty() {
                let listed = match &mut carried {
                    Some(carried) => carried.among(&rows).await.map_err(CarriedError::from)?,
                    None => Vec::new(),
                };
                let listed = listed.iter();
                let carried = listed.map(|(index, row)| (*index, CarriedRow::from_bytes(row)));
                let window = WindowRows {
                    rows,
                    carried: carried.collect(),
                    duplicates,
                };
                let receipts = receipts.clone();
                let answered = answer_window(ctx.clone(), lease.shard, window, receipts);
                windows.push_back(AbortOnDropHandle::new(tokio::spawn(
                    answered.in_current_span(),
                )));
            }
        }
        let Some(window) = windows.pop_front() else {
            break;
        };
        let Window {
            rows,
            tokens,
            cost,
            carried,
            copied,
            arms: asked,
        } = window
            .await
            .expect("a window neither panics nor is aborted")?;
        tally.tokens += tokens;
        tally.cost += cost;
        carried_rows += carried;
        copied_rows += copied;
        arms.add(asked);
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let slice;
            (slice, rows) = formatted(ctx.clone(), input.uri.clone(), rows).await;
            tally.rows += slice.rows;
            arms.end(&slice.arms);
            files.write(slice).await?;
        }
    }
    if let Some(failed) = only {
        failed.finish()?;
    }
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
    if !matches!(&ctx.answerer, Answerer::Server(_)) {
        receipts::discard_all(&ctx.output, ctx.plan.run, Some(ours.shard)).await;
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

async fn answer_window(
    ctx: Arc<ShardContext>,
    shard: ShardIndex,
    window: WindowRows,
    receipts: Arc<Receipts>,
) -> Result<Window, ShardError> {
    if let Answerer::Routed(router) = &ctx.answerer {
        return router.answer(&ctx, shard, window, &receipts).await;
    }
    let WindowRows {
        rows,
        carried: listed,
        duplicates,
    } = window;
    let (mut rows, mut texts): (Vec<PendingRow>, Vec<Option<String>>) =
        (rows.into_iter().map(|row| PendingRow::split(row, None))).unzip();
    let listed = Listed {
        rows: &listed,
        duplicates: &duplicates,
    };
    let lay = |row: usize, earlier: EarlierRow, duplicate_of| {
        rows[row].carry(earlier.outcome, duplicate_of);
        texts[row] = None;
    };
    let laid = listed.lay(&ctx, shard, lay).await?;
    let at_server: Vec<usize> = (0..texts.len())
        .filter(|&row| texts[row].is_some())
        .collect();
    let bad = (rows.len() - at_server.len()) as u64 - laid.all;
    let Laid {
        carried, copied, ..
    } = laid;
    ctx.progress.answered(
        shard,
        answered_tally(laid.all - laid.failed, bad + laid.failed, 0),
    );
    if let Some(chunking) = &ctx.job.input.chunking {
        let asked: Vec<String> = texts.into_iter().flatten().collect();
        let chunked = chunked::answer(&ctx, shard, chunking, &asked, &receipts).await?;
        let Chunked {
            endings,
            tokens,
            cost,
        } = chunked;
        for (row, ending) in at_server.into_iter().zip(endings) {
            rows[row].end(ending);
        }
        return Ok(Window {
            rows,
            tokens,
            cost,
            carried,
            copied,
            arms: ArmTallies::default(),
        });
    }
    let submitter = match &ctx.answerer {
        Answerer::Routed(_) => unreachable!("its rows are answered by its router"),
        Answerer::Server(submitter) => submitter,
        Answerer::Remote(caller) => {
            let asked: Vec<String> = texts.into_iter().flatten().collect();
            let tell = |tally| ctx.progress.answered(shard, tally);
            let Answered {
                outcomes,
                tokens,
                cost,
            } = caller.answer(&asked, receipts.of(None), tell).await?;
            for (row, outcome) in at_server.into_iter().zip(outcomes) {
                rows[row].answer(outcome);
            }
            return Ok(Window {
                rows,
                tokens,
                cost,
                carried,
                copied,
                arms: ArmTallies::default(),
            });
        }
    };
    let lengths: Vec<usize> = at_server
        .iter()
        .map(|&row| texts[row].as_ref().map_or(0, String::len))
        .collect();
    let submitted = chunks(&lengths, CHUNK_LIMITS).into_iter().map(|chunk| {
        let chunk: Vec<usize> = chunk.into_iter().map(|i| at_server[i as usize]).collect();
        let texts = chunk
            .iter()
            .map(|&row| texts[row].take().expect("sent once"))
            .collect();
        answer_chunk(&ctx, submitter, shard, chunk, texts)
    });
    let submitted: Vec<_> = submitted.collect();
    let mut tokens = 0;
    for (chunk, answered) in futures::future::try_join_all(submitted).await? {
        tokens += answered.tokens;
        for (row, outcome) in chunk.into_iter().zip(answered.outcomes) {
            rows[row].answer(outcome);
        }
    }
    Ok(Window {
        rows,
        tokens,
        cost: Cost::NOTHING,
        carried,
        copied,
        arms: ArmTallies::default(),
    })
}

async fn answer_chunk(
    ctx: &ShardContext,
    submitter: &Submitter,
    shard: ShardIndex,
    chunk: Vec<usize>,
    texts: Vec<String>,
) -> Result<(Vec<usize>, Answered), SubmitError> {
    let answered = submitter.submit(texts).await?;
    let outcomes = answered.outcomes.iter();
    let failed = outcomes.filter(|outcome| outcome.is_err()).count() as u64;
    let succeeded = answered.outcomes.len() as u64 - failed;
    let tally = answered_tally(succeeded, failed, answered.tokens);
    ctx.progress.answered(shard, tally);
    Ok((chunk, answered))
}

pub(super) fn answered_tally(succeeded: u64, failed: u64, tokens: u64) -> Tally {
    let skipped = 0;
    let rows = Rows {
        succeeded,
        failed,
        skipped,
    };
    Tally {
        rows,
        tokens,
        cost: Cost::NOTHING,
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
