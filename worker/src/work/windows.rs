//! The windows of a shard: read, selected and answered, some of them ahead.
//!
//! Memory is bounded by them: while one is at the server the next is read, and no third is begun.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_protocol::cost::Cost;
use millrace_protocol::ledger::CarriedRow;
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::tally::{Rows, Tally};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::call::receipts::Receipts;
use super::carried::{self, CarriedError, CarriedRows, EarlierRow};
use super::chunked::{self, Chunked};
use super::lines::PendingRow;
use super::listed::{Laid, Listed};
use super::routed::ArmTallies;
use super::selection::{Selected, Selection};
use super::shard::{Answerer, Asker, ShardContext, ShardError};
use super::submit::{Answered, SubmitError, Submitter};
use super::window::{ChunkLimits, Window, WindowRows, chunks};
use crate::read::{self, RowStream};

/// Rows in a window: enough chunks to sort by length and keep the server's queue full.
const WINDOW_ROWS_MAX: usize = 2_048;
/// Bytes of rows in a window.
const WINDOW_BYTES_MAX: usize = 4 << 20;
/// Windows of a shard in flight: one at the server, one behind it so that the queue never empties.
const WINDOWS_MAX: usize = 2;
/// About one batch of 4,096 tokens in text, at some four bytes a token.
pub(super) const CHUNK_LIMITS: ChunkLimits = ChunkLimits {
    rows_max: 512,
    text_bytes_max: 16 << 10,
};

/// The windows of a shard, some of them ahead.
pub(super) struct Windows {
    ctx: Arc<ShardContext>,
    shard: ShardIndex,
    /// URI of the shard's file.
    pub(super) file: String,
    rows: RowStream,
    bytes_max: usize,
    selection: Selection,
    carried: Option<CarriedRows>,
    pub(super) receipts: Arc<Receipts>,
    in_flight: VecDeque<AbortOnDropHandle<Result<Window, ShardError>>>,
    ended: bool,
    /// Rows that the filter left out so far.
    skipped: u64,
}

impl Windows {
    /// Opens the shard's input and the lists that name rows of it.
    pub(super) async fn open(
        ctx: &Arc<ShardContext>,
        index: ShardIndex,
    ) -> Result<Self, ShardError> {
        let shard = ctx.plan.shards.get(index as usize);
        let shard = shard.ok_or(ShardError::NotPlanned(index))?;
        let (input, wanted) = (ctx.plan.input_of(shard), &ctx.job.input);
        let selection = Selection::open(&ctx.output, wanted, &ctx.plan, shard).await?;
        let (fields, row_bytes_max) = (selection.fields(), wanted.row_bytes_max);
        let rows = read::open_shard(&ctx.stores, input, shard, fields, row_bytes_max).await?;
        let paid_in = shard.receipts(ctx.plan.run, index);
        let receipts = match &ctx.answerer {
            Answerer::One(Asker::Server(_)) => Receipts::none(&ctx.output, paid_in),
            Answerer::One(Asker::Remote(_)) | Answerer::Routed(_) => {
                let receipts = Receipts::open(&ctx.output, paid_in).await;
                receipts.map_err(ShardError::Receipts)?
            }
        };
        let chunking = wanted.chunking.as_ref();
        Ok(Self {
            ctx: ctx.clone(),
            shard: index,
            file: input.uri.clone(),
            rows,
            bytes_max: chunking.map_or(WINDOW_BYTES_MAX, |chunking| {
                chunking.window_bytes(WINDOW_BYTES_MAX)
            }),
            selection,
            carried: carried::open_list(ctx, index).await?,
            receipts: Arc::new(receipts),
            in_flight: VecDeque::new(),
            ended: false,
            skipped: 0,
        })
    }

    /// The next window, answered; `None` once there is no more.
    pub(super) async fn next(&mut self) -> Result<Option<Window>, ShardError> {
        while !self.ended && self.in_flight.len() < WINDOWS_MAX {
            self.begin().await?;
        }
        let Some(window) = self.in_flight.pop_front() else {
            return Ok(None);
        };
        let window = window.await;
        window
            .expect("a window neither panics nor is aborted")
            .map(Some)
    }

    /// Reads the rows of one more window and has them answered.
    async fn begin(&mut self) -> Result<(), ShardError> {
        let rows = self
            .rows
            .next_batch(WINDOW_ROWS_MAX, self.bytes_max)
            .await?;
        self.ended = rows.is_empty();
        let Selected {
            rows,
            duplicates,
            skipped,
        } = self.selection.among(rows).await?;
        self.skipped += skipped;
        let begun = rows.len() as u64 + skipped;
        self.ctx.progress.begun(self.shard, begun);
        if rows.is_empty() {
            return Ok(());
        }
        let listed = match &mut self.carried {
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
        let (ctx, receipts) = (self.ctx.clone(), self.receipts.clone());
        let answered = answer_window(ctx, self.shard, window, receipts);
        let answered = tokio::spawn(answered.in_current_span());
        self.in_flight.push_back(AbortOnDropHandle::new(answered));
        Ok(())
    }

    /// Makes sure that every row was met that was to be. Returns how many the filter left out.
    pub(super) fn finish(self) -> Result<u64, ShardError> {
        self.selection.finish()?;
        Ok(self.skipped)
    }
}

async fn answer_window(
    ctx: Arc<ShardContext>,
    shard: ShardIndex,
    window: WindowRows,
    receipts: Arc<Receipts>,
) -> Result<Window, ShardError> {
    let asker = match &ctx.answerer {
        Answerer::Routed(router) => return router.answer(&ctx, shard, window, &receipts).await,
        Answerer::One(asker) => asker,
    };
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
    let asked = Asked {
        rows: &mut rows,
        at: at_server,
        texts: texts.into_iter().flatten().collect(),
    };
    let (tokens, cost) = asked.answer(&ctx, asker, shard, &receipts).await?;
    Ok(Window {
        rows,
        tokens,
        cost,
        carried,
        copied,
        arms: ArmTallies::default(),
    })
}

/// The rows of a window that are asked about.
struct Asked<'a> {
    /// All rows of the window.
    rows: &'a mut [PendingRow],
    /// Which of them are asked about.
    at: Vec<usize>,
    /// What is asked about each of these.
    texts: Vec<String>,
}

impl Asked<'_> {
    /// Has the rows answered. Returns what that took: tokens, and money.
    async fn answer(
        self,
        ctx: &Arc<ShardContext>,
        asker: &Asker,
        shard: ShardIndex,
        receipts: &Arc<Receipts>,
    ) -> Result<(u64, Cost), ShardError> {
        match (asker, &ctx.job.input.chunking) {
            (_, Some(chunking)) => {
                let texts = &self.texts;
                let chunked = chunked::answer(ctx, asker, shard, chunking, texts, receipts).await?;
                let Chunked {
                    endings,
                    tokens,
                    cost,
                } = chunked;
                for (row, ending) in self.at.into_iter().zip(endings) {
                    self.rows[row].end(ending);
                }
                Ok((tokens, cost))
            }
            (Asker::Remote(caller), None) => {
                let tell = |tally| ctx.progress.answered(shard, tally);
                let answered = caller.answer(&self.texts, receipts.of(None), tell).await?;
                let Answered {
                    outcomes,
                    tokens,
                    cost,
                } = answered;
                for (row, outcome) in self.at.into_iter().zip(outcomes) {
                    self.rows[row].answer(outcome);
                }
                Ok((tokens, cost))
            }
            (Asker::Server(submitter), None) => {
                let tokens = self.submit(ctx, shard, submitter).await?;
                Ok((tokens, Cost::NOTHING))
            }
        }
    }

    /// Has the server beside this worker answer the rows, in chunks of similar length. Returns the tokens.
    async fn submit(
        self,
        ctx: &ShardContext,
        shard: ShardIndex,
        submitter: &Submitter,
    ) -> Result<u64, SubmitError> {
        let Self {
            rows,
            at,
            mut texts,
        } = self;
        let lengths: Vec<usize> = texts.iter().map(String::len).collect();
        let submitted = chunks(&lengths, CHUNK_LIMITS).into_iter().map(|chunk| {
            let chunk = chunk.into_iter().map(|index| index as usize);
            let texts = chunk.clone().map(|index| std::mem::take(&mut texts[index]));
            let texts = texts.collect();
            let chunk = chunk.map(|index| at[index]).collect();
            answer_chunk(ctx, submitter, shard, chunk, texts)
        });
        let submitted: Vec<_> = submitted.collect();
        let mut tokens = 0;
        for (chunk, answered) in futures::future::try_join_all(submitted).await? {
            tokens += answered.tokens;
            for (row, outcome) in chunk.into_iter().zip(answered.outcomes) {
                rows[row].answer(outcome);
            }
        }
        Ok(tokens)
    }
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
