//! Reads a child's standard error: passes it on and remembers the last lines.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::forward::Forward;

/// Lines remembered.
const LINES_MAX: usize = 20;

/// Bytes remembered of each line.
const LINE_BYTES_MAX: usize = 1024;

/// The last lines of a stream, shared between its reader and whoever quotes them.
#[derive(Debug, Clone, Default)]
pub struct Tail {
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug, Default)]
struct Lines {
    whole: VecDeque<Vec<u8>>,
    /// The line that has not ended yet.
    open: Vec<u8>,
}

impl Tail {
    /// Reads `stream` to its end.
    pub async fn read(self, mut stream: impl AsyncRead + Unpin, forward: Option<Forward>) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            if let Some(forward) = &forward {
                forward.pass_on(&buffer[..count]);
            }
            self.add(&buffer[..count]);
        }
    }

    /// The last lines, oldest first.
    pub fn text(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let open = Some(&lines.open).filter(|line| !line.is_empty());
        let lines = lines.whole.iter().chain(open);
        lines
            .map(|line| String::from_utf8_lossy(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn add(&self, bytes: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut lines.open);
                lines.whole.push_back(line);
                if lines.whole.len() > LINES_MAX {
                    lines.whole.pop_front();
                }
            } else if lines.open.len() < LINE_BYTES_MAX {
                lines.open.push(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &str, expected: &str) {
        let tail = Tail::default();
        tail.add(written.as_bytes());
        assert_eq!(tail.text(), expected);
    }

    #[test]
    fn a_line_without_an_end_is_quoted_too() {
        check("one\ntwo", "one\ntwo");
    }

    #[test]
    fn only_the_last_lines_are_remembered() {
        let written = (0..100).map(|line| format!("{line}\n")).collect::<String>();
        let expected = (80..100)
            .map(|line| line.to_string())
            .collect::<Vec<_>>()
            .join("\n");
        check(&written, &expected);
    }

    #[test]
    fn an_endless_line_is_cut() {
        check(&"x".repeat(1 << 20), &"x".repeat(LINE_BYTES_MAX));
    }
}
