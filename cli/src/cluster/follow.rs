//! Follows a job to its end: a bar on a terminal, lines in a pipe, or the object each time it changed.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher;
use kube::runtime::{WatchStreamExt, watcher::watch_object};
use millrace_crds::BatchJob;

use super::connect::Connection;
use super::end::{End, end, is_of_this_spec, succeeded};
use super::show::{Format, bare, document};
use super::ticker::{Ticker, line};
use super::{explain, hints, summary};
use crate::{exit, output};

/// How long a status that says "over" and speaks of an earlier spec is doubted: an operator that has
/// something to do begins well within this time.
const DOUBT: Duration = Duration::from_secs(10);

/// How long a job may stay without a status before a person is told where to look.
const UNSEEN: Duration = Duration::from_secs(15);

/// How the watching ended.
enum Watched {
    Over(Box<BatchJob>, End),
    Deleted,
    Interrupted,
}

/// Follows the job to its end, says how it ended, and gives the exit code for that.
pub async fn follow(
    connection: &Connection,
    name: &str,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let stream = watch_object(connection.jobs(), name).default_backoff();
    let mut sink = Sink::new(format);
    let watched = tokio::select! {
        watched = watch(connection, name, Box::pin(stream), &mut sink) => watched,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Ok(Watched::Interrupted)
        }
    };
    sink.clear();
    match watched? {
        Watched::Over(job, end) => {
            if !sink.is_of_documents() {
                let lines = summary::short(&job, &connection.invocation, Timestamp::now());
                output::line(&lines.join("\n"))?;
            }
            Ok(end.exit_code())
        }
        Watched::Deleted => anyhow::bail!("batchjob/{name} was deleted"),
        Watched::Interrupted => {
            let command = |words: &str| connection.invocation.command(words);
            eprintln!("no longer watching; the job goes on in the cluster:");
            eprintln!("  {}", command(&format!("status {name} --watch")));
            eprintln!("  {}", command(&format!("cancel {name}")));
            Ok(exit::INTERRUPTED.into())
        }
    }
}

async fn watch(
    connection: &Connection,
    name: &str,
    mut changes: impl Stream<Item = watcher::Result<Option<BatchJob>>> + Unpin,
    sink: &mut Sink,
) -> anyhow::Result<Watched> {
    // The end that an earlier spec came to, and until when it is doubted.
    let mut doubted: Option<(Box<BatchJob>, End, Instant)> = None;
    let mut unseen_until = Some(Instant::now() + UNSEEN);
    let mut is_away = false;
    loop {
        let now = Instant::now();
        let doubted_until = doubted.as_ref().map(|(_, _, until)| *until);
        let wakes = [doubted_until, unseen_until, sink.due_at(now)];
        let change = match wakes.into_iter().flatten().min() {
            Some(at) => tokio::time::timeout_at(at.into(), changes.next())
                .await
                .ok(),
            None => Some(changes.next().await),
        };
        let now = Instant::now();
        sink.due(now);
        let Some(change) = change else {
            if let Some((job, end, _)) = doubted.take_if(|(_, _, until)| *until <= now) {
                return Ok(Watched::Over(job, end));
            }
            if unseen_until.take_if(|until| *until <= now).is_some() {
                tell_if_unseen(connection, name, sink).await?;
            }
            continue;
        };
        let job = match change {
            Some(Ok(Some(job))) => job,
            Some(Ok(None)) => return Ok(Watched::Deleted),
            Some(Err(error)) => {
                let error = passing(error).map_err(|error| {
                    connection.explain(error, &format!("watch batchjob/{name}"))
                })?;
                if !is_away {
                    sink.tell(&format!("the API server is away ({error}); trying again"));
                }
                is_away = true;
                continue;
            }
            None => anyhow::bail!("the API server ended the watch of batchjob/{name}"),
        };
        is_away = false;
        unseen_until = unseen_until.filter(|_| succeeded(&job).is_none());
        sink.draw(&job)?;
        doubted = match end(&job) {
            Some(end) if is_of_this_spec(&job) => return Ok(Watched::Over(Box::new(job), end)),
            Some(end) => Some((Box::new(job), end, now + DOUBT)),
            None => None,
        };
    }
}

/// A job that no operator looks at is followed for ever, so a person is told where to look.
async fn tell_if_unseen(connection: &Connection, name: &str, sink: &Sink) -> anyhow::Result<()> {
    let job = connection.job(name).await?;
    if succeeded(&job).is_none() {
        sink.tell(&hints::for_job(&job, &connection.invocation).unwrap_or_default());
    }
    Ok(())
}

/// What was said of an outage, or an error that no waiting mends.
fn passing(error: watcher::Error) -> Result<String, kube::Error> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error)
            if !explain::is_passing(&error) =>
        {
            Err(error)
        }
        error => Ok(error.to_string()),
    }
}

/// Where the state of the job is shown.
enum Sink {
    Bar(ProgressBar),
    Lines(Ticker),
    Documents(Format),
}

impl Sink {
    fn new(format: Format) -> Self {
        match format {
            Format::Json | Format::Yaml => Sink::Documents(format),
            Format::Text | Format::Wide if std::io::stderr().is_terminal() => Sink::Bar(bar()),
            Format::Text | Format::Wide => Sink::Lines(Ticker::default()),
        }
    }

    fn is_of_documents(&self) -> bool {
        matches!(self, Sink::Documents(_))
    }

    fn draw(&mut self, job: &BatchJob) -> anyhow::Result<()> {
        let line = line(job, Timestamp::now());
        match self {
            Sink::Bar(bar) => {
                let (ended, total) = line.shards;
                bar.set_length(u64::from(total));
                bar.set_position(u64::from(ended));
                bar.set_message(line.text);
            }
            Sink::Lines(ticker) => {
                if let Some(text) = ticker.next(Instant::now(), line) {
                    eprintln!("{text}");
                }
            }
            // One document per line, as programs read a stream.
            Sink::Documents(Format::Json) => {
                output::line(&serde_json::to_string(&bare(job.clone()))?)?;
            }
            Sink::Documents(format) => {
                let document = document(&bare(job.clone()), *format)?;
                output::line(&format!("---\n{}", document.trim_end()))?;
            }
        }
        Ok(())
    }

    /// When a line that was kept is due.
    fn due_at(&self, now: Instant) -> Option<Instant> {
        match self {
            Sink::Lines(ticker) => ticker.due_at(now),
            Sink::Bar(_) | Sink::Documents(_) => None,
        }
    }

    /// Says the line that was kept, if it is due.
    fn due(&mut self, now: Instant) {
        if let Sink::Lines(ticker) = self
            && let Some(text) = ticker.due(now)
        {
            eprintln!("{text}");
        }
    }

    /// Says something beside the state.
    fn tell(&self, text: &str) {
        match self {
            Sink::Bar(bar) => bar.println(text),
            Sink::Lines(_) | Sink::Documents(_) => eprintln!("{text}"),
        }
    }

    fn clear(&self) {
        if let Sink::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30.cyan/dim} {msg}")
        .expect("the template is a constant that is right");
    ProgressBar::new(0).with_style(style)
}
