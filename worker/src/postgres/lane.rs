//! One connection and the files that are loaded over it, some rows per transaction.
//!
//! Each transaction also notes how many rows of the file are loaded. One whose end was not heard of is
//! looked up by that note, so that a row is loaded once whatever is lost on the way.

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

/// Some consecutive lines of a file.
struct Batch<'a> {
    file: &'a LoadedFile,
    /// Lines before them.
    start: u64,
    lines: Vec<String>,
    is_last: bool,
}

impl Lane {
    /// A lane without a connection.
    pub fn new(road: Arc<Road>) -> Self {
        Self { road, client: None }
    }

    /// Loads what is not loaded of a file; returns the rows that were.
    pub async fn load(&mut self, file: &LoadedFile) -> Result<u64, PostgresError> {
        let mut reader = output::open(&self.road.output, &file.path).await?;
        let broken = |source| PostgresError::Broken {
            path: file.path.clone(),
            source,
        };
        for _ in 0..file.rows_before {
            line(&mut reader).await.map_err(broken)?;
        }
        let mut start = file.rows_before;
        loop {
            let (mut lines, mut bytes) = (Vec::new(), 0);
            while lines.len() < ROWS_MAX && bytes < BYTES_MAX {
                let Some(line) = line(&mut reader).await.map_err(broken)? else {
                    break;
                };
                bytes += line.len();
                lines.push(line);
            }
            let is_last = reader.fill_buf().await.map_err(broken)?.is_empty();
            let batch = Batch {
                file,
                start,
                lines,
                is_last,
            };
            self.commit(&batch).await?;
            start += batch.lines.len() as u64;
            if is_last {
                return Ok(start - file.rows_before);
            }
        }
    }

    /// Loads a batch, over a new connection where one was lost.
    async fn commit(&mut self, batch: &Batch<'_>) -> Result<(), PostgresError> {
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

    async fn try_commit(&mut self, batch: &Batch<'_>) -> Result<(), PostgresError> {
        let Road {
            database,
            table,
            output: _,
            output_uri,
        } = &*self.road;
        let Batch {
            file,
            start,
            lines,
            is_last,
        } = batch;
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
        let names: [&(dyn ToSql + Sync); 3] = [&table.name(), output_uri, &file.path];
        let begun = transaction.execute(&table.note_begun(), &names).await;
        begun.map_err(noting)?;
        let held = transaction.query_one(&table.note_held(), &names).await;
        let loaded: i64 = held.map_err(noting)?.get(0);
        let end = start + lines.len() as u64;
        let loaded = loaded as u64;
        if loaded < *start {
            return Err(PostgresError::Rewound {
                path: file.path.clone(),
            });
        }
        // Another one that loads the same got further, or this one did and did not hear of it.
        let missing = lines.iter().skip((loaded - start) as usize);
        if missing.len() > 0 {
            let origin = Origin {
                output: output_uri,
                run: file.part.run,
                has_errors: file.has_errors,
            };
            let message = |message| PostgresError::Line {
                path: file.path.clone(),
                message,
            };
            let rows = missing.map(|line| values(table, origin, line).map_err(message));
            insert(&transaction, table, rows).await?;
        }
        let rows = end.max(loaded) as i64;
        let [name, output, path] = names;
        let values = [name, output, path, &rows, is_last];
        let noted = transaction.execute(&table.note(), &values).await;
        noted.map_err(noting)?;
        transaction.commit().await.map_err(failed("committing"))
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
