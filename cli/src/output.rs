//! Opens outputs by path or URI, and prints lines to whoever still reads them.

use std::io::{self, BufWriter, ErrorKind, Write};

use anyhow::Context;
use millrace_worker::output::{self, Visible};
use millrace_worker::store::{Location, Stores};

/// Bytes of lines that are gathered before they are written.
const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// An output that can be read.
pub struct Opened {
    /// Where it is.
    pub location: Location,
    /// What can be seen of it.
    pub visible: Visible,
}

impl Opened {
    /// Opens the output that a person names: a folder, or a URI. Says so on standard error if its
    /// run is not finished.
    pub async fn open(stores: &Stores, named: &str) -> anyhow::Result<Self> {
        let location = stores.open(&absolute(named)?)?;
        let visible = output::visible(&location).await?;
        if !visible.finished {
            let shards = visible.parts.len();
            eprintln!("the run is not finished: this is what {shards} committed shards hold");
        }
        Ok(Self { location, visible })
    }
}

fn absolute(named: &str) -> anyhow::Result<String> {
    if named.contains("://") {
        return Ok(named.to_owned());
    }
    let path = std::path::absolute(named).with_context(|| format!("{named} is no path"))?;
    Ok(format!("file://{}", path.display()))
}

/// Lines to standard output, up to a limit. A reader that goes away, such as `head`, ends the
/// printing and is no error.
pub struct Lines {
    out: BufWriter<io::Stdout>,
    left: Option<u64>,
    is_closed: bool,
}

impl Lines {
    /// At most `limit` lines.
    pub fn new(limit: Option<u64>) -> Self {
        let out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, io::stdout());
        Self {
            out,
            left: limit,
            is_closed: false,
        }
    }

    /// Whether another line would reach anybody.
    pub fn wants_more(&self) -> bool {
        !self.is_closed && self.left != Some(0)
    }

    /// Prints a line, given without its newline.
    pub fn write(&mut self, line: &str) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        let written = self
            .out
            .write_all(line.as_bytes())
            .and_then(|()| self.out.write_all(b"\n"));
        self.note(written)
    }

    /// Prints what is gathered.
    pub fn finish(mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.note(flushed)
    }

    fn note(&mut self, written: io::Result<()>) -> io::Result<()> {
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            written => written,
        }
    }
}

/// Prints one line at once.
pub fn line(line: &str) -> io::Result<()> {
    let mut lines = Lines::new(None);
    lines.write(line)?;
    lines.finish()
}
