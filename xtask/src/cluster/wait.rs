//! Waiting for what other programs make true, with their last words where they do not.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a probe is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// Lines of a log that a failure shows.
const LINES_SHOWN: usize = 12;

/// Waits until `probe` is true. An error of the probe ends it early; both failures show the end of
/// `log`, which tells why `what` does not come.
pub fn until(
    what: &str,
    log: &Path,
    patience: Duration,
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !probe()? {
        if Instant::now() > deadline {
            bail!(
                "{what} did not come within {} s; {} ends with\n{}",
                patience.as_secs(),
                log.display(),
                end_of(log)
            );
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// The last lines of a log.
pub fn end_of(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}
