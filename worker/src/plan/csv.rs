//! What cutting a CSV file takes: its header, and places where records begin.

use bytes::Buf;
use millrace_protocol::plan::InputFile;

use super::PlanError;
use crate::{
    read::{
        csv::{self, RecordParser},
        pinned::PinnedFile,
        quotes::QuoteScanner,
        source::{Source, Windows},
        splitter::{BYTE_ORDER_MARK, RowEnd, Split, Splitter},
        view::Wanted,
    },
    store::Stores,
};

/// The column names of a file, after checking that the wanted ones are among them. Reads no further
/// than the header. A file without any record has no columns.
pub(super) async fn columns(
    stores: &Stores,
    input: &InputFile,
    wanted: Wanted,
    row_bytes_max: usize,
) -> Result<Option<Vec<String>>, PlanError> {
    let unreadable = |reason: String| PlanError::CsvHeader {
        uri: input.uri.clone(),
        reason,
    };
    let file = PinnedFile::open(stores, input)?;
    let mut source = Source::new(file, input.compression, 0, 0);
    let row_end = RowEnd::NewlineOutsideQuotes(QuoteScanner::new());
    let mut splitter = Splitter::new(row_end, 0, u64::MAX, row_bytes_max);
    let columns = loop {
        match splitter.next() {
            Split::More => {}
            Split::End => return Ok(None),
            Split::TooLong { .. } => {
                return Err(unreadable(format!(
                    "it is longer than {row_bytes_max} bytes"
                )));
            }
            Split::Row {
                open_quote: true, ..
            } => {
                return Err(unreadable("a quote is opened and never closed".into()));
            }
            Split::Row { bytes, .. } => {
                break csv::header(bytes).map_err(|refused| unreadable(refused.error.message))?;
            }
        }
        match source.next().await? {
            Some(window) => splitter.push(window),
            None => splitter.finish(),
        }
    };
    RecordParser::new(&input.uri, &columns, wanted)?;
    Ok(Some(columns))
}

/// Cuts an uncompressed file into ranges of about `target_bytes` that each begin with a record, in
/// one pass over its bytes. Gives the offsets between the ranges.
pub(super) async fn cuts(
    stores: &Stores,
    input: &InputFile,
    target_bytes: u64,
) -> Result<Vec<u64>, PlanError> {
    let mut windows = Windows::new(PinnedFile::open(stores, input)?, 0, u64::MAX);
    let mut finder = CutFinder::new(target_bytes.max(1));
    while let Some(window) = windows.next().await? {
        finder.push(window);
    }
    Ok(finder.cuts(input.size_bytes))
}

/// Finds the records at which to cut. Pure.
struct CutFinder {
    scanner: QuoteScanner,
    /// Offset of the next byte.
    offset: u64,
    target_bytes: u64,
    /// The next cut lies behind the first record end at or after this offset.
    wanted: u64,
    cuts: Vec<u64>,
}

impl CutFinder {
    fn new(target_bytes: u64) -> Self {
        let (scanner, wanted) = (QuoteScanner::new(), target_bytes - 1);
        Self {
            scanner,
            offset: 0,
            target_bytes,
            wanted,
            cuts: Vec::new(),
        }
    }

    fn push(&mut self, mut window: bytes::Bytes) {
        if self.offset == 0 && window.starts_with(BYTE_ORDER_MARK) {
            self.advance(&mut window, BYTE_ORDER_MARK.len());
        }
        while !window.is_empty() {
            // Only quotes matter before the next cut may be made.
            let skipped = self
                .wanted
                .saturating_sub(self.offset)
                .min(window.len() as u64) as usize;
            self.scanner.skip(&window[..skipped]);
            self.advance(&mut window, skipped);
            if window.is_empty() {
                return;
            }
            match self.scanner.newline(&window) {
                Some(newline) => {
                    self.advance(&mut window, newline + 1);
                    self.cuts.push(self.offset);
                    self.wanted = self.offset + self.target_bytes - 1;
                }
                None => {
                    let rest = window.len();
                    self.advance(&mut window, rest);
                }
            }
        }
    }

    fn advance(&mut self, window: &mut bytes::Bytes, bytes: usize) {
        window.advance(bytes);
        self.offset += bytes as u64;
    }

    fn cuts(mut self, size_bytes: u64) -> Vec<u64> {
        if self.cuts.last() == Some(&size_bytes) {
            self.cuts.pop();
        }
        self.cuts
    }
}

/// The cuts of a file that is in memory.
#[cfg(test)]
pub(crate) fn cuts_of(file: &[u8], target_bytes: u64) -> Vec<u64> {
    let mut finder = CutFinder::new(target_bytes);
    finder.push(file.to_vec().into());
    finder.cuts(file.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(windows: &[&str], target_bytes: u64, expected: &[u64]) {
        let mut finder = CutFinder::new(target_bytes);
        windows
            .iter()
            .for_each(|window| finder.push(window.as_bytes().to_vec().into()));
        let size = windows.iter().map(|window| window.len() as u64).sum();
        assert_eq!(finder.cuts(size), expected, "{windows:?}");
    }

    #[test]
    fn a_cut_lies_behind_the_record_that_reaches_the_target() {
        check(&["a\nbb\nccc\ndddd\n"], 1, &[2, 5, 9]);
        check(&["a\nbb\nccc\ndddd\n"], 3, &[5, 9]);
        check(&["a\nbb\nccc\ndddd"], 100, &[]);
        check(&[""], 1, &[]);
    }

    #[test]
    fn no_cut_lies_inside_quotes() {
        check(&["a,\"x\ny\"\nb\n"], 1, &[8]);
        check(&["a,\"x\n", "y\"\nb\n"], 1, &[8]);
        check(&["a,\"x\"", "\"\n\"\nb\nc"], 1, &[9, 11]);
        check(&["\u{feff}\"x\ny\"\nb\n"], 1, &[9]);
    }

    #[test]
    fn a_quote_inside_a_plain_cell_is_text() {
        check(&["5\" disk\nb\n"], 1, &[8]);
        check(&["5", "\" disk\nb\n"], 1, &[8]);
    }
}
