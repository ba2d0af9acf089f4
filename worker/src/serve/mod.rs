//! The worker of a service: attends to the shards of whatever jobs the service has, by priority,
//! then in fair shares.
//!
//! It learns of jobs from the registry alone and holds no right to ask an API server. What the
//! registry forgets it gives back; what it cannot reach it keeps working on.

mod http;
mod jobs;
mod open;
mod rate;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_leases::{JobRegistry, LeaseError, RedisOptions};
use millrace_protocol::registry::{RegisteredJob, WorkerReport};
use millrace_telemetry::chain;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::http::{Door, listen};
use self::jobs::Jobs;
use self::rate::Rate;
use crate::metrics::{CacheTotals, Metrics};
use crate::work::client::ServerAddress;
use crate::work::{Claimed, Held, SHARDS_IN_HAND_MAX, Worker};

/// How often the registry is read.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Pause before shards are asked for again when no job had one.
const CLAIM_INTERVAL: Duration = Duration::from_millis(200);

/// Pause of a job that could not be opened or claimed from, or that has nothing left.
const JOB_PAUSE: Duration = Duration::from_secs(2);

/// What a service's worker works with.
pub struct ServeOptions {
    /// The jobs of the service.
    pub registry: JobRegistry,
    /// The Redis that holds the leases.
    pub redis: RedisOptions,
    /// How long a lease holds without renewal.
    pub lease_ttl: Duration,
    /// The server that answers rows.
    pub server: ServerAddress,
    /// Name of this worker's pod.
    pub pod: String,
    /// Folder with one folder per mounted Secret.
    pub secrets: PathBuf,
    /// What is counted over all jobs.
    pub metrics: Metrics,
    /// Cancelled to give everything back and end.
    pub stop: CancellationToken,
}

/// Works until told to stop; on return every lease is released or acknowledged.
pub async fn serve(options: &ServeOptions) {
    let mut jobs = Jobs::default();
    let mut in_hand: JoinSet<Attended> = JoinSet::new();
    let mut looked: Option<Instant> = None;
    let mut busy = Instant::now();
    let mut rate = Rate::default();
    let mut cache = CacheTotals::of(&options.server);
    while !options.stop.is_cancelled() {
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL) {
            if !in_hand.is_empty() {
                busy = Instant::now();
            }
            rate.observe(
                options.metrics.tokens(),
                !in_hand.is_empty(),
                Instant::now(),
            );
            let report = WorkerReport {
                shards_in_hand: in_hand.len() as u32,
                idle_seconds: busy.elapsed().as_secs() as u32,
                tokens_per_second: rate.per_second(),
                cache: cache.look(Instant::now()).await,
            };
            match look(options, &report).await {
                Ok(registered) => jobs.update(registered, options),
                Err(error) => tracing::warn!(error = %chain(&error), "the registry is away"),
            }
            looked = Some(Instant::now());
        }
        jobs.take_opened();
        if in_hand.len() < SHARDS_IN_HAND_MAX && claim_one(&mut jobs, &mut in_hand).await {
            continue;
        }
        tokio::select! {
            Some(attended) = in_hand.join_next() => {
                let Attended { name, failed } = attended.expect("a shard's task does not panic");
                jobs.put_down(&name);
                if let Some(worker) = failed {
                    jobs.close(&name, &worker, Instant::now() + JOB_PAUSE);
                }
            }
            () = tokio::time::sleep(CLAIM_INTERVAL) => {}
            () = options.stop.cancelled() => {}
        }
    }
    while let Some(attended) = in_hand.join_next().await {
        drop(attended.expect("a shard's task does not panic"));
    }
}

/// What became of a shard in hand.
struct Attended {
    /// Name of its job.
    name: String,
    /// The job's worker, if its stores are to be opened anew.
    failed: Option<Arc<Worker>>,
}

/// Attends to a shard of a job.
async fn attend(
    name: String,
    worker: Arc<Worker>,
    held: Held,
    stop: CancellationToken,
) -> Attended {
    let mut failed = None;
    if let Err(error) = worker.attend(held, stop).await {
        tracing::warn!(job = name, error = %chain(&error), "a shard was given back");
        if error.is_of_stores() {
            failed = Some(worker);
        } else {
            tokio::time::sleep(JOB_PAUSE).await;
        }
    }
    Attended { name, failed }
}

/// Says how this worker is and reads which jobs there are.
async fn look(
    options: &ServeOptions,
    report: &WorkerReport,
) -> Result<Vec<(String, RegisteredJob)>, LeaseError> {
    options.registry.report(&options.pod, report).await?;
    options.registry.list().await
}

/// Claims a shard of the first job in line that has one. Returns whether any had.
async fn claim_one(jobs: &mut Jobs, in_hand: &mut JoinSet<Attended>) -> bool {
    for name in jobs.in_line(Instant::now()) {
        let Some((worker, stop)) = jobs.worker(&name) else {
            continue;
        };
        match worker.claim().await {
            Ok(Claimed::Lease(lease)) => {
                jobs.pick_up(&name);
                in_hand.spawn(attend(name, worker, lease, stop));
                return true;
            }
            Ok(Claimed::Later) => {}
            Ok(Claimed::Drained) => jobs.pause(&name, Instant::now() + JOB_PAUSE),
            Err(error) => {
                tracing::warn!(job = name, error = %chain(&error), "no shard could be claimed");
                let until = Instant::now() + JOB_PAUSE;
                match error.is_of_stores() {
                    true => jobs.close(&name, &worker, until),
                    false => jobs.pause(&name, until),
                }
            }
        }
    }
    false
}
