//! `millrace-worker`: one step of a run per process — plan, work or finish.
//!
//! This is what the pods of a cluster run; `millrace run` drives the same steps in one process.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use millrace_worker::commits;
use millrace_worker::finish::Finish;
use millrace_worker::job::CheckedJob;
use millrace_worker::lease::{LeaseOptions, LeaseStore, RedisLeaseStore, RedisOptions, RunKey};
use millrace_worker::manifests;
use millrace_worker::memory;
use millrace_worker::plan::FIRST_RUN;
use millrace_worker::run::{self, WorkOptions};
use millrace_worker::store::Stores;
use millrace_worker::work::client::Client;
use millrace_worker::work::progress::Progress;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of `finish` when shards were given up.
const EXIT_FAILED_SHARDS: u8 = 3;
/// Exit code of `finish` when shards are open and were queued again.
const EXIT_INCOMPLETE: u8 = 4;

/// Runs one step of a BatchJob.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage; 3 finish: some shards were given up; 4 finish:
/// some shards are open and were queued again.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Plans the run, or reads the plan that is there, and queues its open shards.
    Plan(Common),
    /// Works off shards until none is left or SIGTERM comes.
    Work {
        #[command(flatten)]
        common: Common,
        /// Unix socket of the inference-server.
        #[arg(long, env = "MILLRACE_SERVER_SOCKET")]
        server: PathBuf,
    },
    /// Verifies that commits cover the plan and writes the manifest.
    Finish(Common),
}

#[derive(Debug, Args)]
struct Common {
    /// File or folder with the BatchJob and its InferenceService.
    #[arg(short = 'f', long, env = "MILLRACE_MANIFEST")]
    manifest: PathBuf,
    /// Redis that holds the leases, such as `redis://127.0.0.1:6379`.
    #[arg(long, env = "MILLRACE_LEASES_REDIS_URL")]
    redis: String,
    /// Milliseconds that a lease holds without renewal.
    #[arg(long, env = "MILLRACE_LEASE_TTL_MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(300..=3_600_000))]
    lease_ttl_ms: u64,
}

/// What every step starts with.
struct Opened {
    stores: Stores,
    job: CheckedJob,
    leases: Arc<dyn LeaseStore>,
    lease_ttl: Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("MILLRACE_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    memory::give_back_large_blocks();
    match Cli::parse().step {
        Step::Plan(common) => plan(&open(common).await?).await,
        Step::Work { common, server } => work(&open(common).await?, Client::new(server)).await,
        Step::Finish(common) => finish(&open(common).await?).await,
    }
}

async fn open(common: Common) -> anyhow::Result<Opened> {
    let Common {
        manifest,
        redis,
        lease_ttl_ms,
    } = common;
    let job = manifests::load(&manifest)?.job;
    let lease_ttl = Duration::from_millis(lease_ttl_ms);
    let options = LeaseOptions {
        lease_ttl,
        deliveries_max: job.deliveries_max,
    };
    let run = RunKey {
        namespace: job.namespace.clone(),
        job: job.name.clone(),
        run: FIRST_RUN,
    };
    let leases = RedisLeaseStore::new(&RedisOptions::new(redis), &run, options)
        .context("the Redis of the leases cannot be used")?;
    Ok(Opened {
        stores: Stores::from_env(),
        job,
        leases: Arc::new(leases),
        lease_ttl,
    })
}

async fn plan(opened: &Opened) -> anyhow::Result<ExitCode> {
    let prepared = run::prepare(&opened.stores, &opened.job).await?;
    commits::fill(opened.leases.as_ref(), &prepared.plan, &prepared.committed).await?;
    let (shards, committed) = (prepared.plan.shards.len(), prepared.committed.len());
    tracing::info!(shards, committed, "the run is planned");
    Ok(ExitCode::SUCCESS)
}

async fn work(opened: &Opened, client: Client) -> anyhow::Result<ExitCode> {
    let prepared = run::resume(&opened.stores, &opened.job).await?;
    let stop = CancellationToken::new();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        on_signal.cancel();
    });
    let options = WorkOptions {
        client,
        leases: opened.leases.clone(),
        lease_ttl: opened.lease_ttl,
        progress: Arc::new(Progress::default()),
        stop,
    };
    let ended = run::work(&opened.stores, &opened.job, &prepared, &options).await?;
    let rows = options.progress.snapshot().answered.rows.total();
    tracing::info!(?ended, rows, "the worker is done");
    Ok(ExitCode::SUCCESS)
}

async fn finish(opened: &Opened) -> anyhow::Result<ExitCode> {
    let prepared = run::resume(&opened.stores, &opened.job).await?;
    match run::conclude(&opened.job, &prepared, opened.leases.as_ref()).await? {
        Finish::Finished(manifest) => {
            let failed_shards = manifest.failed_shards.len();
            tracing::info!(totals = ?manifest.totals, failed_shards, "the run is finished");
            let code = if manifest.complete {
                0
            } else {
                EXIT_FAILED_SHARDS
            };
            Ok(ExitCode::from(code))
        }
        Finish::Incomplete(missing) => {
            let committed = commits::list(&prepared.output, prepared.plan.run).await?;
            commits::fill(opened.leases.as_ref(), &prepared.plan, &committed).await?;
            tracing::warn!(
                shards = missing.len(),
                "the run is incomplete: shards queued again"
            );
            Ok(ExitCode::from(EXIT_INCOMPLETE))
        }
    }
}
