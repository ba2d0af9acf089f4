//! One CSV record: its cells, byte for byte.

use std::borrow::Cow;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};
use millrace_protocol::row::RowErrorCode;

use super::{
    ReadError,
    view::{self, Refused, RowView, Wanted},
};

/// Parses records against the columns of their file.
pub(crate) struct RecordParser {
    wanted: Wanted,
    id: Option<usize>,
    text: usize,
    join: Vec<usize>,
    columns: usize,
    cells: Cells,
}

impl RecordParser {
    /// Finds the wanted columns among those of a file.
    pub(crate) fn new(uri: &str, columns: &[String], wanted: Wanted) -> Result<Self, ReadError> {
        let place = |column: &String| match columns.iter().filter(|other| *other == column).count()
        {
            1 => Ok(columns
                .iter()
                .position(|other| other == column)
                .expect("it was counted")),
            0 => Err(ReadError::MissingColumn {
                uri: uri.into(),
                column: column.clone(),
                columns: columns.iter().take(50).cloned().collect(),
            }),
            _ => Err(ReadError::Decode {
                uri: uri.into(),
                encoding: "CSV",
                reason: format!("the header names column {column:?} more than once"),
            }),
        };
        Ok(Self {
            id: wanted.id.as_ref().map(place).transpose()?,
            text: place(&wanted.text)?,
            join: wanted
                .join
                .iter()
                .map(|field| place(&field.name))
                .collect::<Result<_, _>>()?,
            columns: columns.len(),
            cells: Cells::new(),
            wanted,
        })
    }

    /// Parses one record, without its line end.
    pub(crate) fn parse(&mut self, bytes: &[u8]) -> Result<RowView<'_>, Refused> {
        view::utf8(bytes)?;
        let found = self.cells.split(bytes, self.columns);
        let id = self.id.and_then(|index| self.cells.get(index));
        if found != Some(self.columns) {
            let fields = found.map_or("more".into(), |found| found.to_string());
            let message = format!(
                "the record has {fields} fields, but the header has {}",
                self.columns
            );
            let refused = Refused::new(RowErrorCode::InvalidCsv, message);
            return Err(Refused {
                id: id.filter(|_| found.is_some()).map(Into::into),
                ..refused
            });
        }
        let text = self.cells.get(self.text).unwrap_or_default();
        let (id, text) = (id.map(Cow::Borrowed), Ok(Cow::Borrowed(text)));
        self.wanted.row(id, text, |text| {
            let json = |index: &usize| {
                self.cells
                    .get(*index)
                    .map(|cell| serde_json::Value::from(cell).to_string())
            };
            let values: Vec<_> = self.join.iter().map(json).collect();
            self.wanted.beside(&values, text)
        })
    }
}

/// The names in a header record.
pub(crate) fn header(bytes: &[u8]) -> Result<Vec<String>, Refused> {
    view::utf8(bytes)?;
    let mut cells = Cells::new();
    // A record has at most one cell more than it has bytes.
    let found = cells.split(bytes, bytes.len() + 1).unwrap_or(0);
    Ok((0..found)
        .filter_map(|index| cells.get(index).map(String::from))
        .collect())
}

/// The unquoted cells of a record, in buffers that are used again for the next one.
pub(super) struct Cells {
    reader: Reader,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Cells {
    pub(super) fn new() -> Self {
        // Where records end was settled before, so that a lone carriage return is just a byte.
        let mut reader = ReaderBuilder::new()
            .terminator(Terminator::Any(b'\n'))
            .build();
        // The reader drops a byte order mark from the first bytes that it sees. Ours never begins
        // at the start of a file, where the mark was dropped already.
        reader.read_record(b"-\n", &mut [0; 8], &mut [0; 8]);
        Self {
            reader,
            bytes: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Splits a record that is valid UTF-8 and gives the number of cells; `None` if there are more
    /// than `cells_max`.
    pub(super) fn split(&mut self, record: &[u8], cells_max: usize) -> Option<usize> {
        // Unquoted, a record is never longer; the line end takes one byte more.
        if self.bytes.len() <= record.len() {
            self.bytes.resize(record.len() + 1, 0);
        }
        self.ends.resize(cells_max + 1, 0);
        let (_, read, written, ended) =
            self.reader
                .read_record(record, &mut self.bytes, &mut self.ends);
        let (result, _, _, ended_too) =
            self.reader
                .read_record(b"\n", &mut self.bytes[written..], &mut self.ends[ended..]);
        let cells = ended + ended_too;
        if read < record.len() || result != ReadRecordResult::Record || cells > cells_max {
            *self = Self::new();
            return None;
        }
        self.ends.truncate(cells);
        Some(cells)
    }

    pub(super) fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        std::str::from_utf8(&self.bytes[start..end]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffers_of_a_parser_grow_with_the_longest_record_and_not_with_their_number() {
        let mut cells = Cells::new();
        assert_eq!(cells.split(b"a longer record,b", 2), Some(2));
        let capacities = |cells: &Cells| (cells.bytes.capacity(), cells.ends.capacity());
        let first = capacities(&cells);
        for _ in 0..10_000 {
            assert_eq!(cells.split(b"some,\"cells\"", 2), Some(2));
            assert_eq!((cells.get(0), cells.get(1)), (Some("some"), Some("cells")));
        }
        assert_eq!(capacities(&cells), first);
    }
}
