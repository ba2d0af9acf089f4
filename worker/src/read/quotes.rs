//! Where CSV records end: at newlines that no quotes enclose (RFC 4180).

/// Follows the quotes of a CSV file across windows. A quote opens a quoted field only as its first
/// character; elsewhere it is text, as every common reader has it.
#[derive(Debug, Clone)]
pub(crate) struct QuoteScanner {
    state: State,
    /// The byte before the next one; a newline stands for the start of a record.
    previous: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside quotes.
    Plain,
    /// Inside quotes.
    Quoted,
    /// Just behind a quote inside quotes: the end of the field, or one half of an escaped quote.
    Closing,
}

impl QuoteScanner {
    /// A scanner at the start of a record.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Plain,
            previous: b'\n',
        }
    }

    /// Whether the bytes so far end inside quotes.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Quoted
    }

    /// Finds the first newline outside quotes and stands behind it then; without one, stands behind
    /// the last byte.
    pub(crate) fn newline(&mut self, bytes: &[u8]) -> Option<usize> {
        self.run::<true>(bytes)
    }

    /// Stands behind the last byte.
    pub(crate) fn skip(&mut self, bytes: &[u8]) {
        self.run::<false>(bytes);
    }

    fn run<const STOP: bool>(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Plain => {
                    let rest = &bytes[at..];
                    let found = if STOP {
                        memchr::memchr2(b'"', b'\n', rest)
                    } else {
                        memchr::memchr(b'"', rest)
                    };
                    let Some(next) = found.map(|found| at + found) else {
                        break;
                    };
                    if bytes[next] == b'\n' {
                        self.previous = b'\n';
                        return Some(next);
                    }
                    let before = if next == 0 {
                        self.previous
                    } else {
                        bytes[next - 1]
                    };
                    if matches!(before, b',' | b'\n') {
                        self.state = State::Quoted;
                    }
                    at = next + 1;
                }
                State::Quoted => {
                    let Some(next) = memchr::memchr(b'"', &bytes[at..]) else {
                        break;
                    };
                    self.state = State::Closing;
                    at += next + 1;
                }
                State::Closing if bytes[at] == b'"' => {
                    self.state = State::Quoted;
                    at += 1;
                }
                State::Closing => self.state = State::Plain,
            }
        }
        if let Some(last) = bytes.last() {
            self.previous = *last;
        }
        None
    }
}
