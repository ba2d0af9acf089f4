//! Processes: known for certain, and run without a word unless they fail.

use std::fmt;
use std::fs;
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::process::shown;

/// A process by its id and the time at which it started. Ids come again; both together do not, so
/// that no stranger is ever taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    id: u32,
    /// In clock ticks since the machine started.
    started: u64,
}

impl Process {
    /// The process that has this id now.
    pub fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let started = started(&stat)?;
        Some(Self { id, started })
    }

    /// Its id.
    pub fn id(self) -> u32 {
        self.id
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.id) == Some(self)
    }

    /// Ends it at once, if it still runs.
    pub fn kill(self) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        // The shell has `kill` built in, so that no package need bring it.
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -KILL $0"]).arg(self.id.to_string());
        let killed = quietly(&mut kill);
        if self.is_alive() {
            killed.map(drop)
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.started)
    }
}

impl FromStr for Process {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, started) = text.trim().split_once(' ').context("no start time")?;
        Ok(Self {
            id: id.parse()?,
            started: started.parse()?,
        })
    }
}

/// When a process started, out of `/proc/<id>/stat`; nothing for one that has ended and only waits
/// to be collected.
fn started(stat: &str) -> Option<u64> {
    // The name is in parentheses and may hold anything; the fields after it are plain.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let has_ended = matches!(*fields.first()?, "Z" | "X");
    if has_ended {
        None
    } else {
        fields.get(19)?.parse().ok()
    }
}

/// Runs a command and returns what it printed. Its messages are shown only with its failure.
pub fn quietly(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{line}` cannot be started"))?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{line}` failed: {}\n{}",
            output.status,
            messages.trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of `/proc/<id>/stat` with this name and state, started at tick 777.
    fn stat(name: &str, state: char) -> String {
        let between: String = (4..22).map(|field| format!("{field} ")).collect();
        format!("42 ({name}) {state} {between}777 23 24 25\n")
    }

    #[test]
    fn the_start_time_is_found_whatever_the_program_is_called() {
        assert_eq!(started(&stat("etcd", 'S')), Some(777));
        assert_eq!(started(&stat("a) R 1 (b", 'R')), Some(777));
    }

    #[test]
    fn a_process_that_waits_to_be_collected_has_ended() {
        assert_eq!(started(&stat("etcd", 'Z')), None);
        assert_eq!(started("no such line"), None);
    }

    #[test]
    fn a_record_names_this_process_and_no_later_one_of_its_id() {
        let this = Process::of(std::process::id()).unwrap();
        let read: Process = this.to_string().parse().unwrap();
        assert!(read == this && read.is_alive());
        let earlier = Process {
            started: this.started - 1,
            ..this
        };
        assert!(!earlier.is_alive());
        assert!("12".parse::<Process>().is_err());
    }

    #[test]
    fn a_failure_shows_what_the_program_said() {
        let mut command = Command::new("sh");
        let error = quietly(command.args(["-c", "echo too bad >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("too bad"), "{error}");
    }
}
