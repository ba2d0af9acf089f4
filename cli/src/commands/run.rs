//! `millrace run`: works a job off on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use millrace_crds::batch_job::BatchJobSpec;
use millrace_leases::{LeaseOptions, MemoryLeaseStore};
use millrace_worker::job::CheckedJob;
use millrace_worker::manifests::{self, Loaded};
use millrace_worker::memory;
use millrace_worker::plan;
use millrace_worker::run::{self, Found, Prepared, RunEnd, WorkOptions};
use millrace_worker::store::{LinkLocal, Stores};
use millrace_worker::trace;
use millrace_worker::work::client::ServerUrl;
use millrace_worker::work::progress::Progress;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::display::{Display, OutputMode};
use crate::exit;
use crate::local_models;
use crate::local_server::{self, LocalServer, Origin};
use crate::report::{self, End};

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
    /// Server that answers the rows of a service with spec.runtime, such as http://127.0.0.1:8000.
    /// It must run already.
    #[arg(long, env = "MILLRACE_SERVER_URL", value_name = "URL")]
    server_url: Option<ServerUrl>,
}

/// Runs the command.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let RunArgs {
        file,
        dry_run,
        output,
        inference_server,
        server_url,
    } = args;
    let loaded = match manifests::load(&file) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(exit::bad_manifest(&error)),
    };
    let stores = Stores::from_env(LinkLocal::Allowed);
    let misfit = local_server::misfit(&loaded.service, server_url.as_ref());
    if dry_run {
        let server = match misfit {
            Some(misfit) => Err(anyhow::Error::msg(misfit)),
            None => local_server::origin(&loaded.service, server_url, inference_server),
        };
        return super::dry_run::dry_run(&stores, &loaded, output, server).await;
    }
    if let Some(refused) = refused(&loaded.batch_job.spec) {
        eprintln!("error: {refused}");
        return Ok(exit::BAD_MANIFEST.into());
    }
    let mut next = match run::find(&stores, &loaded.job).await? {
        Found::Finished(manifest) => {
            return report::finished(&stores, &loaded, &manifest, output, End::Before).await;
        }
        Found::Next(run) => run,
    };
    if let Some(misfit) = misfit {
        eprintln!("error: {misfit}");
        return Ok(exit::BAD_MANIFEST.into());
    }
    memory::give_back_large_blocks();
    let origin = local_server::origin(&loaded.service, server_url, inference_server)?;
    let (started, started_at) = (Instant::now(), SystemTime::now());
    loop {
        let job = loaded.job.at_run(next);
        let prepared = run::prepare(&stores, &job).await?;
        let display = Display::new(output, &job, &prepared);
        if output == OutputMode::Text {
            foretell(&stores, &job, &prepared).await;
        }
        let worked = work(&stores, &loaded, &job, prepared, &origin, &display).await;
        display.clear();
        match worked? {
            RunEnd::Finished(manifest) => {
                trace::write_whole(&job, &manifest, started_at);
                if next == loaded.job.run {
                    let end = End::Finished(started.elapsed());
                    return report::finished(&stores, &loaded, &manifest, output, end).await;
                }
                next += 1;
            }
            RunEnd::GivenUp(give_up, manifest) => {
                trace::write_whole(&job, &manifest, started_at);
                let end = End::GivenUp(give_up, started.elapsed());
                return report::finished(&stores, &loaded, &manifest, output, end).await;
            }
            RunEnd::Stopped => {
                report::stopped(&file, output);
                return Ok(exit::INTERRUPTED.into());
            }
        }
    }
}

/// Says what the calls of a job will take and cost, before the first one. A guess is a service, not a
/// condition.
async fn foretell(stores: &Stores, job: &CheckedJob, prepared: &Prepared) {
    match plan::forecast(stores, job, &prepared.plan, None).await {
        Ok(None) => {}
        Ok(Some(forecast)) => {
            eprintln!("the whole job takes {forecast}");
            if let Some(warning) = forecast.warning() {
                eprintln!("warning: {warning}");
            }
        }
        Err(error) => eprintln!(
            "what the calls will take is not guessed: {}",
            millrace_telemetry::chain(&error)
        ),
    }
}

/// Why a job is not to be run at all.
fn refused(spec: &BatchJobSpec) -> Option<&'static str> {
    if spec.cancel {
        return Some("spec.cancel is true: the job is given up; remove it, and the job runs");
    }
    spec.suspend
        .then_some("spec.suspend is true: set it to false, and the job runs")
}

async fn work(
    stores: &Stores,
    loaded: &Loaded,
    job: &CheckedJob,
    prepared: Prepared,
    origin: &Origin,
    display: &Display,
) -> anyhow::Result<RunEnd> {
    let service = local_models::fetched(stores, &loaded.service).await?;
    let server = LocalServer::start(origin, &service, &loaded.base)?;
    let lease_options = LeaseOptions {
        lease_ttl: LEASE_TTL,
        deliveries_max: job.deliveries_max,
    };
    let progress = Arc::new(Progress::default());
    let stop = CancellationToken::new();
    let options = WorkOptions {
        server: server.address(),
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
