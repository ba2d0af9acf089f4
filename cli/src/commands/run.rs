//! `millrace run`: works a job off on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use millrace_leases::{LeaseOptions, MemoryLeaseStore};
use millrace_worker::job::CheckedJob;
use millrace_worker::manifests::{self, Loaded};
use millrace_worker::memory;
use millrace_worker::run::{self, Prepared, RunEnd, WorkOptions};
use millrace_worker::store::{LinkLocal, Stores};
use millrace_worker::work::progress::Progress;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::display::{Display, OutputMode};
use crate::exit;
use crate::local_server::{self, LocalServer};
use crate::report;

/// In one process nobody else can take a lease, so it only has to outlive a pause of the machine.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// Runs a BatchJob on this machine, with the same manifest and output as in a cluster.
///
/// Killed or interrupted at any moment, the same command goes on where it was.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// File or folder with the BatchJob and its InferenceService.
    #[arg(short = 'f', long, value_name = "PATH")]
    file: PathBuf,
    /// Plan and check the input, and stop before anything is computed.
    #[arg(long)]
    dry_run: bool,
    /// How to report: bar and text, or JSON lines and the final status.
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputMode,
    /// Binary of the inference-server; by default the one beside this program.
    #[arg(long, env = "MILLRACE_INFERENCE_SERVER", value_name = "PATH")]
    inference_server: Option<PathBuf>,
}

/// Runs the command.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let RunArgs {
        file,
        dry_run,
        output,
        inference_server,
    } = args;
    let loaded = match manifests::load(&file) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(exit::bad_manifest(&error)),
    };
    let stores = Stores::from_env(LinkLocal::Allowed);
    if dry_run {
        let server = local_server::program(inference_server);
        return super::dry_run::dry_run(&stores, &loaded, output, server).await;
    }
    if loaded.batch_job.spec.suspend {
        eprintln!("error: spec.suspend is true: set it to false, and the job runs");
        return Ok(exit::BAD_MANIFEST.into());
    }
    if let Some(manifest) = run::finished(&stores, &loaded.job).await? {
        return report::finished(&stores, &loaded, &manifest, output, None).await;
    }
    memory::give_back_large_blocks();
    let program = local_server::program(inference_server)?;
    let started = Instant::now();
    let prepared = run::prepare(&stores, &loaded.job).await?;
    let display = Display::new(output, &loaded.job, &prepared);
    let worked = work(&stores, &loaded, prepared, &program, &display).await;
    display.clear();
    match worked? {
        RunEnd::Finished(manifest) => {
            let took = Some(started.elapsed());
            report::finished(&stores, &loaded, &manifest, output, took).await
        }
        RunEnd::Stopped => {
            report::stopped(&file, output);
            Ok(exit::INTERRUPTED.into())
        }
    }
}

async fn work(
    stores: &Stores,
    loaded: &Loaded,
    prepared: Prepared,
    program: &std::path::Path,
    display: &Display,
) -> anyhow::Result<RunEnd> {
    let server = LocalServer::start(program, &loaded.service, &loaded.base)?;
    let job = &loaded.job;
    let lease_options = LeaseOptions {
        lease_ttl: LEASE_TTL,
        deliveries_max: job.deliveries_max,
    };
    let progress = Arc::new(Progress::default());
    let stop = CancellationToken::new();
    let options = WorkOptions {
        client: server.client(),
        leases: Arc::new(MemoryLeaseStore::new(lease_options)),
        lease_ttl: LEASE_TTL,
        progress: progress.clone(),
        stop: stop.clone(),
    };
    // Ends with the process: once the run is over, a signal ends what is left to say.
    tokio::spawn(stop_on_signal(stop.clone()));
    let driven = tokio::select! {
        end = drive(&server, stores, job, prepared, &options) => end,
        error = server.failed() => Err(error),
        never = display.show(&progress) => match never {},
    };
    stop.cancel();
    server.stop().await;
    driven
}

/// Drives the run once the server has been ready, or was told to stop before.
async fn drive(
    server: &LocalServer,
    stores: &Stores,
    job: &CheckedJob,
    prepared: Prepared,
    options: &WorkOptions,
) -> anyhow::Result<RunEnd> {
    tokio::select! {
        ready = server.ready() => ready?,
        () = options.stop.cancelled() => {}
    }
    Ok(run::drive(stores, job, prepared, options).await?)
}

/// The first SIGINT or SIGTERM stops the run; the second one, or one after the run, ends this
/// process at once.
async fn stop_on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.is_cancelled() {
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
        eprintln!("\nstopping: commits in flight are finished; once more ends at once");
        stop.cancel();
    }
}
