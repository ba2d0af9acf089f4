//! Shows how far a run is: a bar on a terminal, a line now and then in a pipe, or JSON lines.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use millrace_protocol::plural::plural;
use millrace_protocol::progress::Counts;
use millrace_worker::job::CheckedJob;
use millrace_worker::run::Prepared;
use millrace_worker::work::progress::{Progress, ProgressSnapshot};

use crate::cluster::show::counted;
use crate::output;

/// How a command reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputMode {
    /// For people.
    #[default]
    Text,
    /// For programs: JSON lines, the last one the job with its status.
    Json,
}

/// How often a terminal is redrawn.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
/// How often a pipe gets a line.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Time over which the shown rate is taken, so that it follows the run without jumping.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Time over which the rate is taken that the time left follows from: it is a promise about all that is to
/// come, so that what a moment brings says little of it.
const ETA_WINDOW: Duration = Duration::from_secs(60);

/// Shows the progress of one run.
pub struct Display {
    kind: Kind,
}

enum Kind {
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Display {
    /// A display fit for where the output goes.
    pub fn new(mode: OutputMode, job: &CheckedJob, prepared: &Prepared) -> Self {
        let shards = prepared.plan.shards.len();
        let committed = prepared.committed.len();
        let kind = match mode {
            OutputMode::Json => Kind::Json,
            OutputMode::Text if std::io::stderr().is_terminal() => Kind::Bar(bar()),
            OutputMode::Text => Kind::Lines,
        };
        if mode == OutputMode::Text {
            let inputs = prepared.plan.inputs.len();
            eprintln!(
                "{}: {inputs} {}, {shards} {} → {}",
                job.name,
                plural(inputs as u64, "file"),
                plural(shards as u64, "shard"),
                job.output.uri
            );
            if committed > 0 {
                eprintln!("going on: {committed} of {shards} shards are committed already");
            }
        }
        Self { kind }
    }

    /// Shows `progress` until it is dropped.
    pub async fn show(&self, progress: &Progress) -> Infallible {
        let interval = match self.kind {
            Kind::Bar(_) => BAR_INTERVAL,
            Kind::Lines | Kind::Json => LINE_INTERVAL,
        };
        let mut rates = Rates::new(progress);
        loop {
            tokio::time::sleep(interval).await;
            self.draw(rates.look(progress));
        }
    }

    fn draw(&self, shown: Counts) {
        match &self.kind {
            Kind::Bar(bar) => {
                bar.set_length(u64::from(shown.shards_total));
                bar.set_position(u64::from(shown.shards_committed));
                bar.set_message(text(&shown));
            }
            Kind::Lines => eprintln!(
                "{}/{} shards · {}",
                shown.shards_committed,
                shown.shards_total,
                text(&shown)
            ),
            Kind::Json => {
                let json = serde_json::json!({ "progress": shown });
                // A reader that went away must not stop the run.
                output::line(&json.to_string()).ok();
            }
        }
    }
}

/// Takes the bar away.
impl Drop for Display {
    fn drop(&mut self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}

/// How fast a run is, from looks at its counts.
pub struct Rates {
    samples: Vec<(Instant, ProgressSnapshot)>,
}

impl Rates {
    /// Begins to look.
    pub fn new(progress: &Progress) -> Self {
        Self {
            samples: vec![(Instant::now(), progress.snapshot())],
        }
    }

    /// Looks once more.
    pub fn look(&mut self, progress: &Progress) -> Counts {
        let now = Instant::now();
        self.samples.push((now, progress.snapshot()));
        while self.samples.len() > 2 && now - self.samples[1].0 > ETA_WINDOW {
            self.samples.remove(0);
        }
        shown(&self.samples)
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} shards · {msg}")
        .expect("the template is a constant that is right");
    ProgressBar::new(0).with_style(style)
}

/// The rates of late, and the time left at the rate of a longer time.
fn shown(samples: &[(Instant, ProgressSnapshot)]) -> Counts {
    let (last_at, last) = samples[samples.len() - 1];
    let late = samples.partition_point(|(at, _)| last_at - *at > RATE_WINDOW);
    let (rows_per_second, tokens_per_second) = rates(&samples[late..]);
    let (steady, _) = rates(samples);
    Counts {
        shards_committed: last.shards_committed,
        shards_total: last.shards_total,
        rows_succeeded: last.done.rows.succeeded,
        rows_failed: last.done.rows.failed,
        rows_per_second: (rows_per_second * 10.0).round() / 10.0,
        tokens_per_second: tokens_per_second.round(),
        eta_seconds: eta_seconds(&last, steady),
    }
}

/// Rows and tokens per second between the first and the last of these samples.
fn rates(samples: &[(Instant, ProgressSnapshot)]) -> (f64, f64) {
    let (Some((first_at, first)), Some((last_at, last))) = (samples.first(), samples.last()) else {
        return (0.0, 0.0);
    };
    let seconds = (*last_at - *first_at).as_secs_f64().max(1e-3);
    let rows = last.answered.rows.total() - first.answered.rows.total();
    let tokens = last.answered.tokens - first.answered.tokens;
    (rows as f64 / seconds, tokens as f64 / seconds)
}

/// Committed shards tell how many rows a shard holds; before the first one nothing is known.
fn eta_seconds(now: &ProgressSnapshot, rows_per_second: f64) -> Option<u64> {
    if now.shards_committed == 0 || rows_per_second <= 0.0 {
        return None;
    }
    let in_hand = now.done.rows.total() - now.committed.rows.total();
    let rows_per_shard = now.committed.rows.total() as f64 / f64::from(now.shards_committed);
    let ended = now.shards_committed + now.shards_failed;
    let shards_left = now.shards_total.saturating_sub(ended);
    let rows_left = (rows_per_shard * f64::from(shards_left) - in_hand as f64).max(0.0);
    Some((rows_left / rows_per_second).ceil() as u64)
}

fn text(shown: &Counts) -> String {
    let rows = shown.rows_succeeded + shown.rows_failed;
    let rows = counted(rows, "row");
    let eta = match shown.eta_seconds {
        Some(seconds) => format!("{} left", HumanDuration(Duration::from_secs(seconds))),
        None => "time left not known yet".to_owned(),
    };
    format!(
        "{rows} · {:.0} rows/s · {} tokens/s · {} failed · {eta}",
        shown.rows_per_second,
        HumanCount(shown.tokens_per_second as u64),
        HumanCount(shown.rows_failed),
    )
}

#[cfg(test)]
mod tests {
    use millrace_protocol::tally::{Rows, Tally};

    use super::*;

    fn tally(succeeded: u64) -> Tally {
        Tally {
            rows: Rows {
                succeeded,
                failed: 0,
                skipped: 0,
            },
            tokens: succeeded * 10,
            ..Tally::default()
        }
    }

    #[test]
    fn the_time_left_follows_from_committed_shards_and_the_rate() {
        let snapshot = ProgressSnapshot {
            shards_total: 10,
            shards_committed: 2,
            committed: tally(200),
            done: tally(250),
            answered: tally(250),
            ..ProgressSnapshot::default()
        };
        // 8 shards of 100 rows are left, 50 rows of them are done: 750 rows at 50 a second.
        assert_eq!(eta_seconds(&snapshot, 50.0), Some(15));
        assert_eq!(eta_seconds(&snapshot, 0.0), None);
    }

    #[test]
    fn rates_are_taken_over_the_window_and_not_over_what_others_committed() {
        let start = Instant::now();
        let snapshot = |answered, done| ProgressSnapshot {
            answered: tally(answered),
            done: tally(done),
            ..ProgressSnapshot::default()
        };
        let later = start + Duration::from_secs(2);
        let shown = shown(&[(start, snapshot(0, 500)), (later, snapshot(100, 600))]);
        assert_eq!(
            (shown.rows_per_second, shown.tokens_per_second),
            (50.0, 500.0)
        );
        assert_eq!(shown.rows_succeeded, 600);
    }

    #[test]
    fn the_time_left_does_not_jump_with_the_rate_of_a_moment() {
        let start = Instant::now();
        let at = |seconds, rows, committed| {
            let snapshot = ProgressSnapshot {
                shards_total: 100,
                shards_committed: committed,
                committed: tally(rows),
                done: tally(rows),
                answered: tally(rows),
                ..ProgressSnapshot::default()
            };
            (start + Duration::from_secs(seconds), snapshot)
        };
        // A hundred rows a second for fifty seconds, and none in the last ten.
        let samples = [at(0, 0, 0), at(50, 5_000, 50), at(60, 5_000, 50)];
        let counts = shown(&samples);
        assert_eq!(counts.rows_per_second, 0.0);
        assert_eq!(counts.eta_seconds, Some(60));
        assert!(
            text(&counts).ends_with("· 60 seconds left"),
            "{}",
            text(&counts)
        );
        let counts = shown(&samples[..1]);
        assert!(text(&counts).ends_with("time left not known yet"));
    }
}
