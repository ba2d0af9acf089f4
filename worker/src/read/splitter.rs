//! Splits the decoded bytes of a file into rows, each with its offset, in bounded memory.
//!
//! A row ends at a newline (for CSV, at one outside quotes) or at the end of the file. One carriage
//! return before the newline belongs to the line end. A line without anything else is no row. A
//! byte order mark at the start of the file belongs to the first row and is dropped from it.

use bytes::Bytes;

use super::quotes::QuoteScanner;

/// U+FEFF in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// How rows end.
#[derive(Debug, Clone)]
pub(crate) enum RowEnd {
    /// At every newline.
    Newline,
    /// At newlines that no quotes enclose.
    NewlineOutsideQuotes(QuoteScanner),
}

/// Pure: takes windows, gives rows, does no I/O.
#[derive(Debug)]
pub(crate) struct Splitter {
    row_end: RowEnd,
    row_bytes_max: usize,
    /// Rows that begin here or later are not ours.
    end: u64,
    window: Bytes,
    /// Index of the next byte in `window`.
    at: usize,
    /// Offset in the file of `window[0]`.
    window_offset: u64,
    /// Offset in the file of the current row's first byte.
    row_offset: u64,
    /// The current row's bytes from earlier windows.
    carry: Vec<u8>,
    /// Whether `carry` holds a row that was handed out.
    carry_used: bool,
    state: State,
    last_window: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Collecting a row.
    Row,
    /// Skipping the rest of a row that is too long.
    TooLong,
    /// Skipping the rest of a row that began before the shard.
    Foreign,
}

/// What the splitter came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Split<'a> {
    /// A row, without its line end.
    Row {
        /// First byte of the row.
        offset: u64,
        /// Its bytes.
        bytes: &'a [u8],
        /// Whether the file ended inside quotes.
        open_quote: bool,
    },
    /// A row longer than allowed; its bytes were not kept.
    TooLong {
        /// First byte of the row.
        offset: u64,
    },
    /// Another window is needed.
    More,
    /// No further row begins in the shard.
    End,
}

impl Splitter {
    /// Splits what begins in `start..end`. Lines may be entered anywhere: then the first window
    /// must begin one byte before `start`, which tells whether a row begins at `start`. CSV must
    /// be entered at the start of a record, with the window that begins there.
    pub(crate) fn new(row_end: RowEnd, start: u64, end: u64, row_bytes_max: usize) -> Self {
        let enters_anywhere = matches!(row_end, RowEnd::Newline) && start > 0;
        let first = if enters_anywhere { start - 1 } else { start };
        Self {
            row_end,
            row_bytes_max,
            end,
            window: Bytes::new(),
            at: 0,
            window_offset: first,
            row_offset: first,
            carry: Vec::new(),
            carry_used: false,
            state: if enters_anywhere {
                State::Foreign
            } else {
                State::Row
            },
            last_window: false,
        }
    }

    /// Offset in the file of the first window.
    pub(crate) fn first_offset(&self) -> u64 {
        self.window_offset
    }

    /// Takes the next window; only after [`Split::More`].
    pub(crate) fn push(&mut self, window: Bytes) {
        debug_assert_eq!(
            self.at,
            self.window.len(),
            "the window before was read to its end"
        );
        self.window_offset += self.window.len() as u64;
        let at_file_start = self.window_offset == 0;
        let marked = at_file_start && window.starts_with(BYTE_ORDER_MARK);
        self.at = if marked { BYTE_ORDER_MARK.len() } else { 0 };
        self.window = window;
    }

    /// Says that no window follows.
    pub(crate) fn finish(&mut self) {
        self.last_window = true;
    }

    /// The next row.
    pub(crate) fn next(&mut self) -> Split<'_> {
        loop {
            if self.carry_used {
                self.carry.clear();
                self.carry_used = false;
            }
            if self.state != State::Foreign && self.row_offset >= self.end {
                return Split::End;
            }
            let begin = self.at;
            let newline = self.find_newline(begin);
            let stop = newline.unwrap_or(self.window.len());
            self.at = newline.map_or(stop, |newline| newline + 1);
            if newline.is_none() && !self.last_window {
                self.keep(begin);
                return Split::More;
            }
            if newline.is_none() && self.is_at_file_end(begin) {
                return Split::End;
            }
            let (offset, state) = (self.row_offset, self.state);
            // Behind the last line no further row begins, not even an empty one.
            self.row_offset = if newline.is_some() {
                self.window_offset + self.at as u64
            } else {
                u64::MAX
            };
            self.state = State::Row;
            let in_window = self.carry.is_empty();
            if !in_window && state == State::Row {
                self.carry.extend_from_slice(&self.window[begin..stop]);
                self.carry_used = true;
            }
            let length = if in_window {
                stop - begin
            } else {
                self.carry.len()
            };
            // One more byte is allowed for a carriage return that is dropped below.
            if state == State::TooLong || (state == State::Row && length > self.row_bytes_max + 1) {
                return Split::TooLong { offset };
            }
            if state == State::Foreign || self.is_blank(in_window, begin, stop) {
                continue;
            }
            let open_quote = newline.is_none() && self.is_quote_open();
            let row = if in_window {
                &self.window[begin..stop]
            } else {
                &self.carry[..]
            };
            let bytes = without_return(row);
            if bytes.len() > self.row_bytes_max {
                return Split::TooLong { offset };
            }
            return Split::Row {
                offset,
                bytes,
                open_quote,
            };
        }
    }

    /// Bytes kept of rows that lie in more than one window, and of the window.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.carry.capacity() + self.window.len()
    }

    fn find_newline(&mut self, begin: usize) -> Option<usize> {
        let rest = &self.window[begin..];
        let found = match &mut self.row_end {
            RowEnd::Newline => memchr::memchr(b'\n', rest),
            RowEnd::NewlineOutsideQuotes(scanner) => scanner.newline(rest),
        };
        found.map(|found| begin + found)
    }

    /// Keeps the start of a row whose end lies in a later window, up to the longest row.
    fn keep(&mut self, begin: usize) {
        if self.state != State::Row {
            return;
        }
        let part = &self.window[begin..];
        if self.carry.len() + part.len() > self.row_bytes_max + 1 {
            self.state = State::TooLong;
            self.carry = Vec::new();
        } else {
            self.carry.extend_from_slice(part);
        }
    }

    /// Whether nothing is left: not even the start of a row.
    fn is_at_file_end(&self, begin: usize) -> bool {
        begin == self.window.len() && self.carry.is_empty() && self.state != State::TooLong
    }

    fn is_blank(&self, in_window: bool, begin: usize, stop: usize) -> bool {
        let bytes = if in_window {
            &self.window[begin..stop]
        } else {
            &self.carry[..]
        };
        without_return(bytes).is_empty()
    }

    fn is_quote_open(&self) -> bool {
        match &self.row_end {
            RowEnd::Newline => false,
            RowEnd::NewlineOutsideQuotes(scanner) => scanner.is_open(),
        }
    }
}

/// A row without the carriage return of a CRLF line end.
fn without_return(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}
