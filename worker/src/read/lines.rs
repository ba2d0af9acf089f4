//! Rows that lie one after the other in a byte stream: JSONL, text and CSV.

use millrace_protocol::row::{Place, ReadRow, RowErrorCode};

use super::{
    ReadError,
    csv::RecordParser,
    jsonl,
    source::Source,
    splitter::{Split, Splitter},
    view::{self, Refused, RowView, Wanted},
};

/// The rows of one byte range.
pub(crate) struct Lines {
    source: Source,
    splitter: Splitter,
    parser: Parser,
    row_bytes_max: usize,
    /// Whether the next row is a CSV file's header.
    header_next: bool,
}

/// How the bytes of one row become a row.
pub(crate) enum Parser {
    /// A JSON object.
    Jsonl(Wanted),
    /// A CSV record.
    Csv(Box<RecordParser>),
    /// The text itself.
    Text(Wanted),
}

impl Parser {
    fn parse<'a>(&'a mut self, bytes: &'a [u8], open_quote: bool) -> Result<RowView<'a>, Refused> {
        match self {
            Parser::Jsonl(wanted) => jsonl::parse(bytes, wanted),
            Parser::Csv(_) if open_quote => {
                let message = "a quote is opened and never closed";
                Err(Refused::new(RowErrorCode::InvalidCsv, message))
            }
            Parser::Csv(record) => record.parse(bytes),
            Parser::Text(wanted) => {
                let text = view::utf8(bytes)?;
                wanted.row(None, Ok(text.into()), |written| {
                    wanted.beside_text(written.unwrap_or(text))
                })
            }
        }
    }
}

impl Lines {
    /// Rows that `splitter` finds in `source`; `header_next` says that the first one is none.
    pub(crate) fn new(
        source: Source,
        splitter: Splitter,
        parser: Parser,
        row_bytes_max: usize,
        header_next: bool,
    ) -> Self {
        Self {
            source,
            splitter,
            parser,
            row_bytes_max,
            header_next,
        }
    }

    /// Hands `visit` the next row, and says how many bytes it had; `None` at the end.
    pub(crate) async fn next<T>(
        &mut self,
        visit: impl FnOnce(Place, u64, Result<RowView<'_>, Refused>) -> T,
    ) -> Result<Option<T>, ReadError> {
        loop {
            let (offset, bytes, row) = match self.splitter.next() {
                Split::Row { .. } | Split::TooLong { .. } if self.header_next => {
                    self.header_next = false;
                    continue;
                }
                Split::Row {
                    offset,
                    bytes,
                    open_quote,
                } => (
                    offset,
                    bytes.len() as u64,
                    self.parser.parse(bytes, open_quote),
                ),
                Split::TooLong { offset } => {
                    (offset, 0, Err(Refused::too_long(self.row_bytes_max)))
                }
                Split::More => {
                    match self.source.next().await? {
                        Some(window) => self.splitter.push(window),
                        None => self.splitter.finish(),
                    }
                    continue;
                }
                Split::End => return Ok(None),
            };
            return Ok(Some(visit(Place::Offset { offset }, bytes, row)));
        }
    }

    /// Owned rows; empty at the end.
    pub(crate) async fn next_batch(
        &mut self,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<ReadRow>, ReadError> {
        let (mut rows, mut bytes) = (Vec::new(), 0_u64);
        while rows.len() < rows_max.max(1) && (rows.is_empty() || bytes < bytes_max as u64) {
            let next = self
                .next(|place, bytes, row| (bytes, view::owned(place, row)))
                .await?;
            let Some((row_bytes, row)) = next else { break };
            bytes += row_bytes;
            rows.push(row);
        }
        Ok(rows)
    }
}
