//! Reads the rows of one shard as a stream, in bounded memory.
//!
//! Every row comes out exactly once over all shards of a file: as a row for the models, or as a row
//! error with its position. Only what ails the whole file (it changed, is cut off, is not what its
//! name says) fails the shard.
//!
//! What is a row:
//! - JSONL, text and CSV rows end at a newline, CRLF or LF, or at the end of the file; inside CSV
//!   quotes newlines are text. An empty line is no row. A byte order mark at the start of the file is
//!   dropped. The position is the row's first byte in the decoded file.
//! - A shard `start..end` owns the rows whose first byte lies in it, wherever they end.
//! - A row that is not UTF-8 or has a NUL, that is longer than the job allows, that is not a JSON
//!   object or nests deeper than 128 levels, that has another number of cells than the header, or
//!   whose text is missing, no string or blank, is a row error.
//! - The id may be a string, a number or a boolean. A joined field that a JSON row does not have is
//!   left out of the result line's `input`.

pub(crate) mod csv;
mod error;
mod jsonl;
mod lines;
pub(crate) mod parquet;
mod parquet_file;
#[cfg(test)]
mod parquet_tests;
pub(crate) mod pinned;
#[cfg(test)]
mod properties;
pub(crate) mod quotes;
pub(crate) mod source;
pub(crate) mod splitter;
#[cfg(test)]
mod tests;
pub(crate) mod view;

use millrace_protocol::{
    plan::{Format, InputFile, Shard, ShardRange},
    row::{Place, ReadRow},
};

use self::{
    csv::RecordParser,
    lines::{Lines, Parser},
    parquet::{ParquetRange, ParquetRows},
    pinned::PinnedFile,
    quotes::QuoteScanner,
    source::Source,
    splitter::{RowEnd, Splitter},
    view::{Refused, RowView, Wanted},
};
use crate::{job::Fields, store::Stores};

pub use error::ReadError;

/// The rows of one shard, in the order of the file.
pub struct RowStream {
    rows: Rows,
}

enum Rows {
    Lines(Box<Lines>),
    Parquet(ParquetRows),
}

impl RowStream {
    /// The next rows: at most `rows_max`, and no further one once they have `bytes_max` bytes. An
    /// empty batch is the end of the shard.
    pub async fn next_batch(
        &mut self,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<ReadRow>, ReadError> {
        match &mut self.rows {
            Rows::Lines(lines) => lines.next_batch(rows_max, bytes_max).await,
            Rows::Parquet(rows) => rows.next_batch(rows_max, bytes_max).await,
        }
    }

    /// Hands every row to `visit` with its place and its length in bytes, without owning it where
    /// the format allows. Lets the runtime's other tasks run between rows.
    pub(crate) async fn visit(
        mut self,
        mut visit: impl FnMut(Place, u64, Result<RowView<'_>, Refused>),
    ) -> Result<(), ReadError> {
        match &mut self.rows {
            Rows::Lines(lines) => while lines.next(&mut visit).await?.is_some() {},
            Rows::Parquet(rows) => loop {
                let batch = rows.next_batch(1024, 1 << 20).await?;
                if batch.is_empty() {
                    break;
                }
                for row in batch {
                    let place = row.place();
                    let (bytes, row) = view::borrowed(&row);
                    visit(place, bytes, row);
                }
            },
        }
        Ok(())
    }
}

/// Opens a shard of `input` for reading. Nothing of the file is kept but windows of it and the rows
/// being handed out.
pub async fn open_shard(
    stores: &Stores,
    input: &InputFile,
    shard: &Shard,
    fields: &Fields,
    row_bytes_max: usize,
) -> Result<RowStream, ReadError> {
    let file = PinnedFile::open(stores, input)?;
    let wanted = Wanted::new(fields);
    let (start, end) = match shard.range {
        ShardRange::Bytes { start, end } => (start, end),
        ShardRange::Rows {
            row_group,
            start,
            end,
        } => {
            let range = ParquetRange {
                row_group,
                rows: start..end,
                wanted,
                row_bytes_max,
            };
            return Ok(RowStream {
                rows: Rows::Parquet(ParquetRows::open(file, range)),
            });
        }
    };
    let (row_end, parser) = match input.format {
        Format::Jsonl => (RowEnd::Newline, Parser::Jsonl(wanted)),
        Format::Text => (RowEnd::Newline, Parser::Text(wanted)),
        Format::Csv => {
            let columns = input.columns.as_deref().unwrap_or_default();
            let record = RecordParser::new(&input.uri, columns, wanted)?;
            let row_end = RowEnd::NewlineOutsideQuotes(QuoteScanner::new());
            (row_end, Parser::Csv(Box::new(record)))
        }
        Format::Parquet => {
            let (uri, encoding) = (input.uri.clone(), "Parquet");
            let reason = "a shard of it must be a range of rows".into();
            return Err(ReadError::Decode {
                uri,
                encoding,
                reason,
            });
        }
    };
    let splitter = Splitter::new(row_end, start, end, row_bytes_max);
    let header_next = input.format == Format::Csv && start == 0;
    let source = Source::new(file, input.compression, splitter.first_offset(), end);
    let lines = Lines::new(source, splitter, parser, row_bytes_max, header_next);
    Ok(RowStream {
        rows: Rows::Lines(Box::new(lines)),
    })
}
