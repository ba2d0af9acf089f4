//! Rows whose texts are asked about in chunks: cut, asked chunk by chunk, and joined again to one
//! result or one error of each row.

mod join;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use millrace_model_files::chunks::{Guessed, cut};
use millrace_protocol::chunk::{Chunk, ChunkLimits};
use millrace_protocol::cost::Cost;
use millrace_protocol::plan::ShardIndex;
use millrace_protocol::row::RowError;
use millrace_protocol::tally::{Rows, Tally};
use millrace_protocol::wire::ChunksOfText;
use serde_json::{Map, Value};

use self::join::{Span, joined, spans};
use super::call::receipts::Receipts;
use super::lines::Ending;
use super::shard::{Asker, ShardContext};
use super::submit::{Answered, RowOutcome, SubmitError, Submitter};
use super::window::chunks;
use super::windows::CHUNK_LIMITS;
use crate::job::{Chunking, Fields};

/// Bytes that are asked about at a time. The chunks of a row may have far more than the row: each goes
/// into a prompt with the row's other fields.
const ASKED_BYTES_MAX: usize = 4 << 20;

/// How rows ended, and what it took.
pub(super) struct Chunked {
    /// The result or the error of each row, in the order of the rows.
    pub endings: Vec<Result<Ending, RowError>>,
    /// Tokens that went through models.
    pub tokens: u64,
    /// What calls of a paid API cost.
    pub cost: Cost,
}

/// A row whose chunks are being asked about.
struct OpenRow {
    /// Where each chunk stands.
    spans: Vec<Span>,
    /// What became of each; `None` while it is asked about.
    outcomes: Vec<Option<RowOutcome>>,
    /// How many of them are asked about.
    unsaid: usize,
}

/// A chunk that is to be asked about.
struct Piece {
    row: usize,
    /// Index among the chunks of the row.
    chunk: usize,
    asked: String,
}

/// Rows on their way.
struct Asking<'a> {
    ctx: &'a Arc<ShardContext>,
    asker: &'a Asker,
    shard: ShardIndex,
    chunking: &'a Chunking,
    receipts: &'a Receipts,
    /// The rows that are not ended, by their index.
    open: BTreeMap<usize, OpenRow>,
    /// What is asked next.
    pieces: Vec<Piece>,
    pieces_bytes: usize,
    endings: Vec<Option<Result<Ending, RowError>>>,
    tokens: u64,
    cost: Cost,
}

/// Answers rows, each of which is its text or the fields that prompts are made of.
pub(super) async fn answer(
    ctx: &Arc<ShardContext>,
    asker: &Asker,
    shard: ShardIndex,
    chunking: &Chunking,
    asked: &[String],
    receipts: &Receipts,
) -> Result<Chunked, SubmitError> {
    let fields = &ctx.job.input.fields;
    let cut = match asker {
        Asker::Server(submitter) => submitter.cut(asked, chunking.limits).await?,
        Asker::Remote(_) => {
            let texts = asked.iter().map(|asked| Document::new(asked, fields));
            let texts: Vec<String> = texts.map(|it| it.text().to_owned()).collect();
            guessed(&texts, chunking.limits).await
        }
    };
    let mut asking = Asking {
        ctx,
        asker,
        shard,
        chunking,
        receipts,
        open: BTreeMap::new(),
        pieces: Vec::new(),
        pieces_bytes: 0,
        endings: asked.iter().map(|_| None).collect(),
        tokens: 0,
        cost: Cost::NOTHING,
    };
    for (row, (asked, cut)) in asked.iter().zip(cut).enumerate() {
        match cut {
            ChunksOfText::Ok(chunks) => {
                let document = Document::new(asked, fields);
                asking.begin(row, &document, &chunks).await?;
            }
            ChunksOfText::Err(error) => asking.end(row, Err(error)),
        }
    }
    asking.ask().await?;
    let endings = asking.endings.into_iter();
    Ok(Chunked {
        endings: endings
            .map(|ending| ending.expect("every row has chunks, and all were asked"))
            .collect(),
        tokens: asking.tokens,
        cost: asking.cost,
    })
}

/// Cuts texts by guessed tokens, away from the runtime's threads.
pub(crate) async fn guessed(texts: &[String], limits: ChunkLimits) -> Vec<ChunksOfText> {
    let texts = texts.to_vec();
    let cutting = move || {
        let cut = texts.iter().map(|text| cut(text, &limits, &[&Guessed]));
        cut.map(|cut| cut.map_or_else(ChunksOfText::Err, ChunksOfText::Ok))
            .collect()
    };
    let cutting = tokio::task::spawn_blocking(cutting);
    cutting.await.expect("cutting by bytes does not panic")
}

impl Asking<'_> {
    /// Takes the chunks of a row, and asks as soon as there are enough.
    async fn begin(
        &mut self,
        row: usize,
        document: &Document<'_>,
        chunks: &[Chunk],
    ) -> Result<(), SubmitError> {
        let open = OpenRow {
            spans: spans(document.text(), chunks),
            outcomes: chunks.iter().map(|_| None).collect(),
            unsaid: chunks.len(),
        };
        self.open.insert(row, open);
        for (index, chunk) in chunks.iter().enumerate() {
            let asked = document.piece(chunk);
            self.pieces_bytes += asked.len();
            self.pieces.push(Piece {
                row,
                chunk: index,
                asked,
            });
            if self.pieces_bytes >= ASKED_BYTES_MAX {
                self.ask().await?;
            }
        }
        Ok(())
    }

    /// Asks about what was taken, and ends the rows of which everything was said.
    async fn ask(&mut self) -> Result<(), SubmitError> {
        let pieces = std::mem::take(&mut self.pieces).into_iter();
        self.pieces_bytes = 0;
        let (places, asked): (Vec<(usize, usize)>, Vec<String>) = pieces
            .map(|piece| ((piece.row, piece.chunk), piece.asked))
            .unzip();
        let (ctx, shard) = (self.ctx, self.shard);
        match self.asker {
            Asker::Server(submitter) => {
                let mut requests = submit(submitter, asked);
                while let Some(answered) = requests.next().await {
                    let (request, answered) = answered?;
                    let tokens = answered.tokens;
                    let tally = Tally {
                        tokens,
                        ..Tally::default()
                    };
                    ctx.progress.answered(shard, tally);
                    self.take(
                        request.iter().map(|&index| places[index as usize]),
                        answered,
                    );
                }
            }
            Asker::Remote(caller) => {
                let tell = |tally: Tally| {
                    let rows = Rows::default();
                    ctx.progress.answered(shard, Tally { rows, ..tally });
                };
                let answered = caller.answer(&asked, self.receipts.of(None), tell).await?;
                self.take(places.into_iter(), answered);
            }
        }
        Ok(())
    }

    /// Takes what was said of the chunks in these places: the index of the row and of the chunk.
    fn take(&mut self, places: impl Iterator<Item = (usize, usize)>, answered: Answered) {
        let Answered {
            outcomes,
            tokens,
            cost,
        } = answered;
        self.tokens += tokens;
        self.cost += cost;
        for ((row, chunk), outcome) in places.zip(outcomes) {
            let open = self.open.get_mut(&row);
            let open = open.expect("its chunks are not all said");
            open.outcomes[chunk] = Some(outcome);
            open.unsaid -= 1;
            if open.unsaid > 0 {
                continue;
            }
            if let Some(OpenRow {
                spans,
                outcomes,
                unsaid: _,
            }) = self.open.remove(&row)
            {
                let outcomes = outcomes.into_iter().flatten().collect();
                let (steps, joins) = (&self.ctx.job.steps, &self.chunking.joins);
                self.end(row, joined(steps, &spans, outcomes, joins));
            }
        }
    }

    fn end(&mut self, row: usize, ending: Result<Ending, RowError>) {
        let failed = u64::from(ending.is_err());
        let rows = Rows {
            succeeded: 1 - failed,
            failed,
            skipped: 0,
        };
        let tally = Tally {
            rows,
            ..Tally::default()
        };
        self.ctx.progress.answered(self.shard, tally);
        self.endings[row] = Some(ending);
    }
}

/// Sends texts in requests of similar lengths; each says which texts it had.
fn submit(
    submitter: &Submitter,
    mut texts: Vec<String>,
) -> FuturesUnordered<impl Future<Output = Result<(Vec<u32>, Answered), SubmitError>>> {
    let lengths: Vec<usize> = texts.iter().map(String::len).collect();
    let requests = chunks(&lengths, CHUNK_LIMITS).into_iter();
    let submitted = requests.map(|request| {
        let of = |&index: &u32| std::mem::take(&mut texts[index as usize]);
        let texts: Vec<String> = request.iter().map(of).collect();
        async move { Ok((request, submitter.submit(texts).await?)) }
    });
    submitted.collect()
}

/// What is asked about a row.
pub(crate) enum Document<'a> {
    /// Its text.
    Text(&'a str),
    /// The fields that prompts are made of; the text stands in one of them.
    Fields {
        fields: Map<String, Value>,
        text_field: &'a str,
        text: String,
    },
}

impl<'a> Document<'a> {
    /// Takes apart what is asked: a text, or fields as one JSON object where the job has prompts.
    pub(crate) fn new(asked: &'a str, fields: &'a Fields) -> Self {
        if fields.prompted.is_empty() {
            return Self::Text(asked);
        }
        let text_field = fields.text.as_str();
        let fields: Map<String, Value> =
            serde_json::from_str(asked).expect("the reader made it of fields");
        let text = fields.get(text_field).and_then(Value::as_str);
        let text = text.unwrap_or_default().to_owned();
        Self::Fields {
            fields,
            text_field,
            text,
        }
    }

    /// The row's text.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Fields { text, .. } => text,
        }
    }

    /// What is asked about a chunk: as if the row's text were no longer.
    pub(crate) fn piece(&self, chunk: &Chunk) -> String {
        let piece = chunk.of(self.text());
        match self {
            Self::Text(_) => piece.to_owned(),
            Self::Fields {
                fields, text_field, ..
            } => {
                let mut fields = fields.clone();
                fields.insert((*text_field).to_owned(), piece.into());
                Value::Object(fields).to_string()
            }
        }
    }
}
