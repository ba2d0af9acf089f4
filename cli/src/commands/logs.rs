//! `millrace logs`: what the pods of a job say, each line with the pod and container it is from.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use futures::AsyncBufReadExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;
use kube::{Api, ResourceExt};
use millrace_crds::BatchJob;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cluster::connect::{ClusterArgs, Connection};
use crate::cluster::end::end;
use crate::cluster::jobs::job_name;
use crate::cluster::sources::{Source, Step, parsed, runs, sources};
use crate::output;
use millrace_crds::names::service_of;

/// How often a job that is followed is looked at for new pods and for its end.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long the last lines of a job that is over are waited for, once no more come.
const SILENCE: Duration = Duration::from_secs(1);

/// Longest the last lines of a job that is over are waited for: a service that other jobs share
/// goes on speaking.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Lines read and not yet printed: enough that no container waits for another one's line.
const LINES_MAX: usize = 256;

/// Prints what the pods of a job say: its plan, the pods of its service, its finish.
///
/// Of the service's pods, what they have said since the job was created.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The job: its name, batchjob/NAME, or @latest, the newest one.
    #[arg(value_parser = job_name)]
    name: String,
    /// Go on until the job is over, with the pods that join on the way.
    #[arg(long)]
    follow: bool,
    /// Only the pods of one step.
    #[arg(long, value_enum)]
    step: Option<Step>,
    /// Most lines of each container, from its end.
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the command.
pub async fn run(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let LogsArgs {
        name,
        follow,
        step,
        tail,
        cluster,
    } = args;
    let connection = cluster.connect().await?;
    let job = connection.job(&name).await?;
    let name = job.name_any();
    let since = job.metadata.creation_timestamp.as_ref().map(|it| it.0);
    let wanted = Wanted {
        step,
        tail: tail.map(i64::from),
        since,
        follow,
    };
    let begun = begun(&connection, &job, step).await?;
    if follow && end(&job).is_none() {
        return follow_all(&connection, &name, wanted).await;
    }
    if begun.is_empty() {
        let status = connection.invocation.command(&format!("status {name}"));
        eprintln!("no pod of this job has said anything that is still kept; `{status}` shows why");
    }
    print_all(&connection, begun, wanted).await
}

/// Which lines a person wants.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    step: Option<Step>,
    tail: Option<i64>,
    since: Option<Timestamp>,
    follow: bool,
}

/// A line, as it is printed.
type Said = anyhow::Result<String>;

/// Prints what was said so far, one container after the other. A container whose lines cannot be
/// had hides no other, and is a failure at the end.
async fn print_all(
    connection: &Connection,
    begun: Vec<Source>,
    wanted: Wanted,
) -> anyhow::Result<ExitCode> {
    let wanted = Wanted {
        follow: false,
        ..wanted
    };
    let mut code = ExitCode::SUCCESS;
    for source in begun {
        let (to, mut lines) = mpsc::channel(LINES_MAX);
        let mut reading = JoinSet::new();
        reading.spawn(read(connection.clone(), source, wanted, to));
        while let Some(said) = lines.recv().await {
            if said.is_err() {
                code = ExitCode::FAILURE;
            }
            if !print(said)? {
                return Ok(code);
            }
        }
    }
    Ok(code)
}

/// Prints what all containers say until the job is over.
async fn follow_all(
    connection: &Connection,
    name: &str,
    wanted: Wanted,
) -> anyhow::Result<ExitCode> {
    let (to, mut lines) = mpsc::channel(LINES_MAX);
    // Dropped at the end, which ends the readers of containers that go on speaking.
    let mut readers = JoinSet::new();
    let mut known = BTreeSet::new();
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            said = lines.recv() => {
                let said = said.ok_or_else(|| anyhow!("this function holds a sender"))?;
                if !print(said)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            _ = look.tick() => {
                let job = connection.job(name).await?;
                for source in begun(connection, &job, wanted.step).await? {
                    if known.insert(source.clone()) {
                        readers.spawn(read(connection.clone(), source, wanted, to.clone()));
                    }
                }
                if end(&job).is_some() {
                    break;
                }
            }
        }
    }
    let last_lines = async {
        while let Ok(Some(said)) = tokio::time::timeout(SILENCE, lines.recv()).await {
            if !print(said)? {
                break;
            }
        }
        anyhow::Ok(())
    };
    if let Ok(printed) = tokio::time::timeout(LAST_LINES, last_lines).await {
        printed?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line; false once nobody reads any more.
fn print(said: Said) -> anyhow::Result<bool> {
    match said {
        Ok(line) => Ok(output::line_is_read(&line)?),
        Err(error) => {
            eprintln!("{error:#}");
            Ok(true)
        }
    }
}

/// The containers that began.
async fn begun(
    connection: &Connection,
    job: &BatchJob,
    step: Option<Step>,
) -> anyhow::Result<Vec<Source>> {
    let name = job.metadata.name.clone().unwrap_or_default();
    let readable = |pods: Result<Vec<Pod>, String>| match pods {
        Ok(pods) => Ok(pods),
        Err(reason) => bail!(reason),
    };
    let step_pods = readable(connection.step_pods(&name).await?)?;
    let service_pods = readable(connection.service_pods(&service_of(job)).await?)?;
    Ok(sources(&step_pods, &service_pods, step))
}

/// Reads a container to its end, or for as long as it speaks. A connection that breaks is made
/// again where it broke.
async fn read(connection: Connection, source: Source, wanted: Wanted, to: mpsc::Sender<Said>) {
    let mut last: Option<Timestamp> = None;
    loop {
        let ended = read_once(&connection, &source, wanted, &mut last, &to).await;
        match ended {
            Ok(Ended::Gone) => return,
            // The kubelet ends a connection after hours, and the container goes on.
            Ok(Ended::End) if wanted.follow && still_runs(&connection, &source).await => {}
            Ok(Ended::End) => return,
            Err(Broken::Stream(_)) if wanted.follow => {}
            Err(Broken::Stream(error)) => {
                let error = anyhow!("{} breaks off: {error}", prefix(&source));
                to.send(Err(error)).await.ok();
                return;
            }
            Err(Broken::Refused(error)) => {
                to.send(Err(error)).await.ok();
                return;
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether this very container, not one that was started in its place, runs.
async fn still_runs(connection: &Connection, source: &Source) -> bool {
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let pod = pods.get(&source.pod).await;
    pod.is_ok_and(|pod| runs(&pod, source))
}

enum Ended {
    /// The container said all.
    End,
    /// Nobody reads any more.
    Gone,
}

enum Broken {
    /// The lines broke off.
    Stream(io::Error),
    /// They were refused.
    Refused(anyhow::Error),
}

async fn read_once(
    connection: &Connection,
    source: &Source,
    wanted: Wanted,
    last: &mut Option<Timestamp>,
    to: &mpsc::Sender<Said>,
) -> Result<Ended, Broken> {
    let pods: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.namespace);
    let params = LogParams {
        container: Some(source.container.clone()),
        follow: wanted.follow,
        // What was read already is not counted from the end again.
        tail_lines: wanted.tail.filter(|_| last.is_none()),
        since_time: last.or(wanted.since),
        timestamps: true,
        ..LogParams::default()
    };
    let stream = pods.log_stream(&source.pod, &params).await;
    let stream = stream.map_err(|error| {
        let doing = format!("read the logs of {}", prefix(source));
        Broken::Refused(connection.explain(error, &doing))
    })?;
    let mut stream = std::pin::pin!(stream);
    let before = *last;
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let read = stream.read_until(b'\n', &mut bytes).await;
        if read.map_err(Broken::Stream)? == 0 {
            return Ok(Ended::End);
        }
        let line = String::from_utf8_lossy(&bytes);
        let (at, said) = parsed(line.trim_end_matches(['\n', '\r']));
        // The API server counts in seconds, so the last second comes twice.
        if at.is_some() && at <= before {
            continue;
        }
        *last = at.or(*last);
        let line = format!("[{}] {said}", prefix(source));
        if to.send(Ok(line)).await.is_err() {
            return Ok(Ended::Gone);
        }
    }
}

fn prefix(source: &Source) -> String {
    let Source {
        pod,
        container,
        restarts: _,
    } = source;
    format!("{pod}/{container}")
}
