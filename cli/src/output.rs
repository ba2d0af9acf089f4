//! Opens outputs by path or URI, and prints lines to whoever still reads them.

use std::io::{self, BufWriter, ErrorKind, Write};

use anyhow::Context;
use millrace_worker::output::{self, Visible};
use millrace_worker::store::{LinkLocal, Location, Stores};

use crate::cluster::connect::ClusterArgs;
use crate::cluster::jobs::resolve_output;

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
    /// Opens the output that a person names: a folder, a URI, or `batchjob/NAME`, which the cluster
    /// knows. Says so on standard error if its run is not finished.
    pub async fn of(named: &str, cluster: &ClusterArgs) -> anyhow::Result<Self> {
        let resolved = resolve_output(named.to_owned(), cluster).await?;
        let opened = Self::open(&resolved).await;
        if resolved == named {
            return opened;
        }
        opened.with_context(|| {
            format!(
                "{named} writes to {resolved}, which is read from here, with AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and AWS_ALLOW_HTTP of this environment"
            )
        })
    }

    async fn open(named: &str) -> anyhow::Result<Self> {
        let location = stores().open(&absolute(named)?)?;
        let visible = output::visible(&location).await?;
        if !visible.finished {
            let shards = visible.parts.len();
            let held = match shards {
                1 => "1 committed shard holds".to_owned(),
                _ => format!("{shards} committed shards hold"),
            };
            eprintln!("the run is not finished: this is what {held}");
        }
        Ok(Self { location, visible })
    }
}

/// Where the output is that a person names, whatever is there.
pub async fn locate(named: &str, cluster: &ClusterArgs) -> anyhow::Result<Location> {
    let resolved = resolve_output(named.to_owned(), cluster).await?;
    Ok(stores().open(&absolute(&resolved)?)?)
}

fn stores() -> Stores {
    Stores::from_env(LinkLocal::Allowed)
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

    /// Prints what is gathered. More may follow.
    pub fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.note(flushed)
    }

    /// Prints what is gathered, and nothing more.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()
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
    line_is_read(line).map(drop)
}

/// Prints one line at once; false if its reader went away.
pub fn line_is_read(line: &str) -> io::Result<bool> {
    let mut lines = Lines::new(None);
    lines.write(line)?;
    let flushed = lines.out.flush();
    lines.note(flushed)?;
    Ok(!lines.is_closed)
}
