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

mod csv;
mod error;
mod jsonl;
mod lines;
mod pinned;
mod quotes;
mod source;
mod splitter;
mod view;

use millrace_protocol::{
    plan::{Format, InputFile, Shard, ShardRange},
    row::ReadRow,
};

use self::{
    csv::RecordParser,
    lines::{Lines, Parser},
    pinned::PinnedFile,
    quotes::QuoteScanner,
    source::Source,
    splitter::{RowEnd, Splitter},
    view::Wanted,
};
use crate::{job::Fields, store::Stores};

pub use error::ReadError;

/// The rows of one shard, in the order of the file.
pub struct RowStream {
    rows: Lines,
}

impl RowStream {
    /// The next rows: at most `rows_max`, and no further one once they have `bytes_max` bytes. An
    /// empty batch is the end of the shard.
    pub async fn next_batch(
        &mut self,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<ReadRow>, ReadError> {
        self.rows.next_batch(rows_max, bytes_max).await
    }
}

/// Opens a shard of `input` for reading. Nothing of the file is kept but a window of it and the
/// rows being handed out.
pub async fn open_shard(
    stores: &Stores,
    input: &InputFile,
    shard: &Shard,
    fields: &Fields,
    row_bytes_max: usize,
) -> Result<RowStream, ReadError> {
    let file = PinnedFile::open(stores, input)?;
    let (start, end) = match shard.range {
        ShardRange::Bytes { start, end } => (start, end),
        ShardRange::Rows { start, end, .. } => (start, end),
    };
    let row_end = match input.format {
        Format::Csv => RowEnd::NewlineOutsideQuotes(QuoteScanner::new()),
        Format::Jsonl | Format::Text | Format::Parquet => RowEnd::Newline,
    };
    let splitter = Splitter::new(row_end, start, end, row_bytes_max);
    let wanted = Wanted::new(fields);
    let parser = match input.format {
        Format::Jsonl | Format::Parquet => Parser::Jsonl(wanted),
        Format::Text => Parser::Text,
        Format::Csv => {
            let columns = input.columns.as_deref().unwrap_or_default();
            Parser::Csv(Box::new(RecordParser::new(&input.uri, columns, wanted)?))
        }
    };
    let header_next = input.format == Format::Csv && start == 0;
    let source = Source::new(file, input.compression, splitter.first_offset(), end);
    Ok(RowStream { rows: Lines::new(source, splitter, parser, row_bytes_max, header_next) })
}
