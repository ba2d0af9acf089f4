//! What is said of a job while it is watched: one line, and when a pipe gets it. Pure.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use millrace_crds::{BatchJob, BatchJobStatus};
use millrace_protocol::plural::plural;

use super::end::succeeded;
use super::show::{clipped, count, counted, span};

/// How often a pipe gets a line while only counters move.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Longest message in a line.
const MESSAGE_CHARS_MAX: usize = 160;

/// A line about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The word for where it stands: another word is always told.
    pub reason: String,
    /// The whole line.
    pub text: String,
    /// Shards that ended, and all of them.
    pub shards: (u32, u32),
}

/// Where the job stands.
pub fn line(job: &BatchJob, now: Timestamp) -> Line {
    let nothing = BatchJobStatus::default();
    let status = job.status.as_ref().unwrap_or(&nothing);
    let condition = succeeded(job);
    let reason = condition.map_or("", |it| it.reason.as_str());
    let mut parts = vec![match condition {
        None => "waiting for an operator to look at it".to_owned(),
        // The counters say it better.
        Some(_) if reason == "Running" => reason.to_owned(),
        Some(condition) => {
            let message = clipped(&condition.message, MESSAGE_CHARS_MAX);
            format!("{reason}: {message}")
        }
    }];
    let mut shards = (0, 0);
    if let Some(counts) = status.shards {
        shards = (counts.committed, counts.total);
        let noun = plural(u64::from(shards.1), "shard");
        parts.push(format!("{}/{} {noun}", shards.0, shards.1));
    }
    if let Some(rows) = status.rows {
        let ended = rows.succeeded + rows.failed;
        parts.push(counted(ended, "row"));
        if rows.failed > 0 {
            parts.push(format!("{} failed", count(rows.failed)));
        }
    }
    if let (Some(rate), "Running") = (status.rows_per_second, reason) {
        parts.push(format!("{rate:.0} rows/s"));
    }
    if let (Some(eta), "Running") = (&status.eta, reason) {
        let left = eta.0.duration_since(now).as_secs();
        parts.push(format!("{} left", span(left)));
    }
    Line {
        reason: reason.to_owned(),
        text: parts.join(" · "),
        shards,
    }
}

/// Decides which lines a pipe gets: one per change, and no flood while only counters move. A line
/// that came too soon is kept until it is due: it may be the last one for long.
#[derive(Debug, Default)]
pub struct Ticker {
    /// What was printed last, and when.
    last: Option<(Instant, Line)>,
    kept: Option<Line>,
}

impl Ticker {
    /// The text to print now, if any.
    pub fn next(&mut self, now: Instant, line: Line) -> Option<String> {
        self.kept = Some(line);
        self.due(now)
    }

    /// The text of the line that was kept, once it is due.
    pub fn due(&mut self, now: Instant) -> Option<String> {
        if self.due_at(now)? > now {
            return None;
        }
        let line = self.kept.take()?;
        let text = line.text.clone();
        self.last = Some((now, line));
        Some(text)
    }

    /// When the line that was kept is due; nothing if there is nothing new to say.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        let kept = self.kept.as_ref()?;
        match &self.last {
            Some((_, last)) if last.text == kept.text => None,
            Some((at, last)) if last.reason == kept.reason => Some(*at + LINE_INTERVAL),
            _ => Some(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::show::testing::{job, now};

    #[test]
    fn a_running_job_is_told_by_its_counters() {
        let line = line(&job("Unknown", "Running"), now());
        assert_eq!(
            line.text,
            "Running · 41/100 shards · 1,203 rows · 3 failed · 282 rows/s · 3m50s left"
        );
        assert_eq!(line.shards, (41, 100));
    }

    #[test]
    fn any_other_state_is_told_with_its_message() {
        let line = line(&job("Unknown", "Planning"), now());
        assert!(line.text.starts_with("Planning: as it is · "), "{line:?}");
        assert!(!line.text.contains("left"), "{line:?}");
    }

    #[test]
    fn a_job_that_no_operator_saw_is_told_as_such() {
        let mut job = job("Unknown", "Running");
        job.status = None;
        assert_eq!(
            line(&job, now()).text,
            "waiting for an operator to look at it"
        );
    }

    fn said(reason: &str, text: &str) -> Line {
        Line {
            reason: reason.to_owned(),
            text: text.to_owned(),
            shards: (0, 0),
        }
    }

    #[test]
    fn a_pipe_gets_every_change_of_state_and_counters_now_and_then() {
        let mut ticker = Ticker::default();
        let start = Instant::now();
        let mut at = |seconds, reason: &str, text: &str| {
            let now = start + Duration::from_secs(seconds);
            ticker.next(now, said(reason, text)).is_some()
        };
        assert!(at(0, "Planning", "a"));
        assert!(!at(1, "Planning", "b"), "a message that changes at once");
        assert!(at(2, "Running", "1"), "another state");
        assert!(!at(3, "Running", "2"), "too soon");
        assert!(at(7, "Running", "3"));
        assert!(!at(60, "Running", "3"), "nothing changed");
        assert!(at(61, "Completed", "4"));
    }

    #[test]
    fn a_line_that_came_too_soon_is_told_once_it_is_due() {
        let mut ticker = Ticker::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(ticker.next(start, said("Planning", "a")).is_some());
        assert_eq!(ticker.due_at(start), None);
        let waits = said("Planning", "its pod waits");
        assert_eq!(ticker.next(after(1), waits), None);
        assert_eq!(ticker.due_at(after(1)), Some(after(5)));
        assert_eq!(ticker.due(after(4)), None);
        assert_eq!(ticker.due(after(5)).as_deref(), Some("its pod waits"));
        assert_eq!(ticker.due_at(after(6)), None);
    }
}
