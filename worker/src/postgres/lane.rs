//! One connection and the files that are loaded over it, some rows per transaction, of several files where
//! these are small.
//!
//! Each transaction also notes how many rows of each file are loaded. One whose end was not heard of is
//! looked up by that note, so that a row is loaded once whatever is lost on the way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use millrace_protocol::manifest::LivePart;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Transaction};

use super::connect::{Database, passes};
use super::record::{Origin, Value, values};
use super::table::Table;
use super::{PostgresError, refused};
use crate::output::{self, OutputReader};
use crate::store::Location;

/// Most rows of one transaction: enough that its own cost is small, and few enough that a lost one
/// costs little.
const ROWS_MAX: usize = 5_000;

/// Rows from which on a transaction takes no further file: those of small shards share one.
pub const ROWS_DUE: usize = 500;

/// Files that share a transaction at most.
const FILES_MAX: usize = 500;

/// Bytes of lines above which a transaction takes no more rows. Some hundred rows even with vectors of
/// 3,072 numbers.
const BYTES_MAX: usize = 8 << 20;

/// Longest line, which only an output that was changed by hand exceeds.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Longest that one transaction may take: a server that hangs is no better than one that is away.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(300);

/// How often a transaction is tried again, over some two minutes.
const RETRIES: usize = 14;

/// A file of an output.
#[derive(Debug, Clone)]
pub struct LoadedFile {
    /// The part that it belongs to.
    pub part: Arc<LivePart>,
    /// Its path below the output.
    pub path: String,
    /// Whether it holds errors.
    pub has_errors: bool,
    /// Rows of it that are loaded already.
    pub rows_before: u64,
}

/// What all lanes share.
#[derive(Debug)]
pub struct Road {
    /// The database.
    pub database: Database,
    /// The table.
    pub table: Table,
    /// Where the files are.
    pub output: Location,
    /// The output's URI.
    pub output_uri: String,
}

/// A connection, made when it is first needed and again where it is lost.
pub struct Lane {
    road: Arc<Road>,
    client: Option<Client>,
}

/// A file that is being read.
struct OpenFile {
    file: Arc<LoadedFile>,
    reader: OutputReader,
    /// Lines before the next one.
    start: u64,
}

/// Some consecutive lines of a file.
struct Piece {
    file: Arc<LoadedFile>,
    /// Lines before them.
    start: u64,
    lines: Vec<String>,
    is_last: bool,
}

/// What one transaction loads, of one file or of several.
#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    rows: usize,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.rows >= ROWS_MAX || self.bytes >= BYTES_MAX
    }

    /// Whether it is worth a transaction of its own.
    fn is_due(&self) -> bool {
        self.is_full() || self.rows >= ROWS_DUE || self.pieces.len() >= FILES_MAX
    }
}

impl OpenFile {
    /// Opens a file behind what of it is loaded.
    async fn open(output: &Location, file: LoadedFile) -> Result<Self, PostgresError> {
        let start = file.rows_before;
        let mut opened = Self {
            reader: output::open(output, &file.path).await?,
            file: Arc::new(file),
            start,
        };
        for _ in 0..start {
            let skipped = line(&mut opened.reader).await;
            skipped.map_err(|source| opened.broken(source))?;
        }
        Ok(opened)
    }

    /// Takes lines into `batch` until that is full or the file ends; returns whether it ended.
    async fn take(&mut self, batch: &mut Batch) -> Result<bool, PostgresError> {
        let mut lines = Vec::new();
        while !batch.is_full() {
            let read = line(&mut self.reader).await;
            let Some(line) = read.map_err(|source| self.broken(source))? else {
                break;
            };
            batch.rows += 1;
            batch.bytes += line.len();
            lines.push(line);
        }
        let ahead = self.reader.fill_buf().await.map(<[u8]>::is_empty);
        let is_last = ahead.map_err(|source| self.broken(source))?;
        let start = self.start;
        self.start += lines.len() as u64;
        batch.pieces.push(Piece {
            file: Arc::clone(&self.file),
            start,
            lines,
            is_last,
        });
        Ok(is_last)
    }

    fn broken(&self, source: std::io::Error) -> PostgresError {
        PostgresError::Broken {
            path: self.file.path.clone(),
            source,
        }
    }
}

impl Lane {
    /// A lane without a connection.
    pub fn new(road: Arc<Road>) -> Self {
        Self { road, client: None }
    }

    /// Loads what is not loaded of the files that `next` gives; returns the rows that were.
    pub async fn load(
        &mut self,
        mut next: impl FnMut() -> Option<LoadedFile>,
    ) -> Result<u64, PostgresError> {
        let (mut rows, mut batch) = (0, Batch::default());
        while let Some(file) = next() {
            let mut file = OpenFile::open(&self.road.output, file).await?;
            let mut is_whole = false;
            while !is_whole {
                is_whole = file.take(&mut batch).await?;
                if batch.is_due() {
                    let batch = std::mem::take(&mut batch);
                    self.commit(&batch).await?;
                    rows += batch.rows as u64;
                }
            }
        }
        if !batch.pieces.is_empty() {
            self.commit(&batch).await?;
        }
        Ok(rows + batch.rows as u64)
    }

    /// Loads a batch, over a new connection where one was lost.
    async fn commit(&mut self, batch: &Batch) -> Result<(), PostgresError> {
        let mut pauses = pauses();
        loop {
            let trying = tokio::time::timeout(TRANSACTION_TIMEOUT, self.try_commit(batch));
            let failed = match trying.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(PostgresError::Failed { doing, error })) if passes(&error) => {
                    refused(doing, error)
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => PostgresError::Hangs,
            };
            self.client = None;
            let Some(pause) = pauses.next() else {
                return Err(failed);
            };
            tracing::warn!(error = %millrace_telemetry::chain(&failed), ?pause, "rows are loaded once more");
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_commit(&mut self, batch: &Batch) -> Result<(), PostgresError> {
        let Road {
            database,
            table,
            output: _,
            output_uri,
        } = &*self.road;
        let failed = |doing| move |error| refused(doing, error);
        let client = match &mut self.client {
            Some(client) if !client.is_closed() => client,
            client => {
                let connected = database.connect().await;
                client.insert(connected.map_err(failed("connecting"))?)
            }
        };
        let transaction = client.transaction().await.map_err(failed("beginning"))?;
        let noting = failed("noting what is loaded");
        let pieces = batch.pieces.iter();
        let paths: Vec<&str> = pieces.map(|piece| piece.file.path.as_str()).collect();
        let names: [&(dyn ToSql + Sync); 3] = [&table.name(), output_uri, &paths];
        let begun = transaction.execute(&table.note_begun(), &names).await;
        begun.map_err(noting)?;
        let held = transaction.query(&table.note_held(), &names).await;
        let held = held.map_err(noting)?;
        let held = held.iter().map(|row| (row.get(0), row.get::<_, i64>(1)));
        let held: HashMap<&str, i64> = held.collect();
        let mut rows = Vec::new();
        let (mut ends, mut are_whole) = (Vec::new(), Vec::new());
        for piece in &batch.pieces {
            let loaded = held.get(piece.file.path.as_str()).map(|&rows| rows as u64);
            // Another one that loads the same got further, or this one did and did not hear of it.
            let Some(known) = loaded.and_then(|loaded| loaded.checked_sub(piece.start)) else {
                let path = piece.file.path.clone();
                return Err(PostgresError::Rewound { path });
            };
            rows.extend(piece.rows(output_uri).skip(known as usize));
            ends.push((piece.start + known.max(piece.lines.len() as u64)) as i64);
            are_whole.push(piece.is_last);
        }
        if !rows.is_empty() {
            let rows = rows.into_iter().map(|(origin, piece, line)| {
                values(table, origin, line).map_err(|message| PostgresError::Line {
                    path: piece.file.path.clone(),
                    message,
                })
            });
            insert(&transaction, table, rows).await?;
        }
        let [name, output, paths] = names;
        let values = [name, output, paths, &ends, &are_whole];
        let noted = transaction.execute(&table.note(), &values).await;
        noted.map_err(noting)?;
        transaction.commit().await.map_err(failed("committing"))
    }
}

impl Piece {
    /// Its lines with where each comes from.
    fn rows<'a>(
        &'a self,
        output: &'a str,
    ) -> impl Iterator<Item = (Origin<'a>, &'a Self, &'a str)> {
        let origin = Origin {
            output,
            run: self.file.part.run,
            has_errors: self.file.has_errors,
        };
        let lines = self.lines.iter();
        lines.map(move |line| (origin, self, line.as_str()))
    }
}

/// Takes rows into the stage, and from there into the table.
async fn insert(
    transaction: &Transaction<'_>,
    table: &Table,
    rows: impl Iterator<Item = Result<Vec<Value>, PostgresError>>,
) -> Result<(), PostgresError> {
    let staging = |error| refused("taking rows", error);
    let stage = table.create_stage();
    transaction.batch_execute(&stage).await.map_err(staging)?;
    let sink = transaction.copy_in(&table.copy()).await.map_err(staging)?;
    let mut copy = std::pin::pin!(BinaryCopyInWriter::new(sink, &table.wire_types()));
    for row in rows {
        copy.as_mut().write_raw(row?).await.map_err(staging)?;
    }
    copy.finish().await.map_err(staging)?;
    let inserted = transaction.batch_execute(&table.insert()).await;
    inserted.map_err(|error| refused("inserting rows", error))
}

/// The pauses between tries of whatever may pass.
pub fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(15))
        .with_max_times(RETRIES)
        .with_jitter()
        .build()
}

/// The next line without its newline; `None` at the end.
async fn line(reader: &mut OutputReader) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let read = reader.take(LINE_BYTES_MAX).read_line(&mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    line.truncate(line.trim_end_matches('\n').len());
    Ok(Some(line))
}
