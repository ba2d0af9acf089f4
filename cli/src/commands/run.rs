//! `millrace run`: works a job off on this machine.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use millrace_crds::batch_job::BatchJobSpec;
use millrace_leases::{LeaseOptions, MemoryLeaseStore};
use millrace_protocol::manifest::Manifest;
use millrace_protocol::plan::{FIRST_RUN, RunNumber};
use millrace_telemetry::chain;
use millrace_worker::changed::{self, Changed};
use millrace_worker::job::CheckedJob;
use millrace_worker::manifests::{self, Loaded};
use millrace_worker::memory;
use millrace_worker::notify::{self, Means};
use millrace_worker::plan::{self, Drafted};
use millrace_worker::postgres::Sink;
use millrace_worker::run::{self, Draft, Found, Prepared, RunEnd, WorkOptions};
use millrace_worker::secrets::Secrets;
use millrace_worker::store::{LinkLocal, Stores};
use millrace_worker::trace;
use millrace_worker::work::client::remote::Credentials;
use millrace_worker::work::progress::Progress;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::board::{Board, BoardArgs, BoardOptions};
use crate::display::{Display, OutputMode};
use crate::exit;
use crate::invocation::Invocation;
use crate::local_models;
use crate::local_server::{self, Answering, LocalServer, ServerArgs};
use crate::report::{self, End};

/// In one process nobody else can take a lease, so it only has to outlive a pause of the machine.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// Where a local run finds secrets, and whom it may tell.
const MEANS: Means = Means {
    secrets: Secrets::Environment,
    link_local: LinkLocal::Allowed,
};

/// Runs a BatchJob on this machine, with the same manifest and output as in a cluster.
///
/// Killed or interrupted at any moment, the same command goes on where it was.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// File or folder with the BatchJob and its InferenceService.
    #[arg(short = 'f', long, value_name = "PATH")]
    file: PathBuf,
    /// Plan and check the input, and stop before anything is computed.
    #[arg(long, conflicts_with = "serve")]
    dry_run: bool,
    #[command(flatten)]
    local: LocalArgs,
}

/// How a job is worked off on this machine.
#[derive(Debug, Args)]
pub struct LocalArgs {
    /// How to report: bar and text, or JSON lines and the final status.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: OutputMode,
    #[command(flatten)]
    server: ServerArgs,
    /// Ask an API elsewhere row by row, one call after the other.
    #[arg(long)]
    no_batch: bool,
    #[command(flatten)]
    board: BoardArgs,
}

/// Runs the command.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let RunArgs {
        file,
        dry_run,
        local,
    } = args;
    let loaded = match manifests::load(&file) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(exit::bad_manifest(&error)),
    };
    if dry_run {
        return look(loaded, local).await;
    }
    work_off(loaded, local, &format!("run -f {}", file.display())).await
}

/// Says what a run would meet, and ends as it would where it cannot work.
async fn look(mut loaded: Loaded, args: LocalArgs) -> anyhow::Result<ExitCode> {
    let LocalArgs {
        output,
        server,
        no_batch,
        board: _,
    } = args;
    if !ask_one_by_one(&mut loaded, no_batch) {
        return Ok(exit::BAD_MANIFEST.into());
    }
    if let Some(refused) = refused(&loaded.batch_job.spec) {
        eprintln!("error: {refused}");
        return Ok(exit::BAD_MANIFEST.into());
    }
    let stores = Stores::from_env(LinkLocal::Allowed);
    let next = match run::find(&stores, &loaded.job).await? {
        Found::Finished(manifest) => {
            let changed = changed::input(&stores, &loaded.job.input, &manifest.inputs).await;
            return match changed {
                Some(changed) => Ok(refuse(&changed)),
                None => report::finished(&stores, &loaded, &manifest, output, End::Before).await,
            };
        }
        Found::Next(run) => loaded.job.at_run(run),
    };
    if let Some(changed) = changed_since(&stores, &next).await? {
        return Ok(refuse(&changed));
    }
    check_secrets(&MEANS, &loaded.job)?;
    let server = match local_server::misfit(&loaded.service, &server) {
        // What is there of the input can be told without the server that somebody else starts.
        Some(_) if local_server::awaits_url(&loaded.service, &server) => None,
        Some(misfit) => {
            eprintln!("error: {misfit}");
            return Ok(exit::BAD_MANIFEST.into());
        }
        None => Some(local_server::answering(
            &loaded.service,
            server.without_cache(),
        )?),
    };
    super::dry_run::dry_run(&stores, &loaded, &next, output, server).await
}

/// Does what `--no-batch` says, if it is given; otherwise, says why that cannot be done.
fn ask_one_by_one(loaded: &mut Loaded, no_batch: bool) -> bool {
    let can = !no_batch || loaded.job.ask_one_by_one();
    if !can {
        eprintln!("error: --no-batch means something for a service with spec.remote alone");
    }
    can
}

/// Works off the runs that the job asks for and the output lacks. The command `again` goes on after an
/// interruption.
pub async fn work_off(
    mut loaded: Loaded,
    args: LocalArgs,
    again: &str,
) -> anyhow::Result<ExitCode> {
    let LocalArgs {
        output,
        server,
        no_batch,
        board,
    } = args;
    let board = match board.options() {
        Ok(board) => board,
        Err(error) => return Ok(exit::bad_manifest(error.as_ref())),
    };
    if !ask_one_by_one(&mut loaded, no_batch) {
        return Ok(exit::BAD_MANIFEST.into());
    }
    let stores = Stores::from_env(LinkLocal::Allowed);
    if let Some(refused) = refused(&loaded.batch_job.spec) {
        eprintln!("error: {refused}");
        return Ok(exit::BAD_MANIFEST.into());
    }
    let next = match run::find(&stores, &loaded.job).await? {
        Found::Finished(manifest) => return before(&stores, &loaded, &manifest, output).await,
        Found::Next(run) => run,
    };
    if let Some(changed) = changed_since(&stores, &loaded.job.at_run(next)).await? {
        return Ok(refuse(&changed));
    }
    if let Some(misfit) = local_server::misfit(&loaded.service, &server) {
        eprintln!("error: {misfit}");
        return Ok(exit::BAD_MANIFEST.into());
    }
    memory::give_back_large_blocks();
    let answering = local_server::answering(&loaded.service, server)?;
    check_secrets(&MEANS, &loaded.job)?;
    let started = Instant::now();
    let board = opened(board, &loaded.job, MEANS.link_local).await?;
    let shows = Shows {
        output,
        board: board.as_ref(),
    };
    let ended = runs(&stores, &loaded, next, &answering, shows).await;
    if let Some(board) = board {
        board.close(&ended).await;
    }
    tell(&MEANS, &loaded.job, &ended).await;
    let Some((manifest, end)) = end(ended?, started.elapsed(), again) else {
        report::stopped(again, output);
        return Ok(exit::INTERRUPTED.into());
    };
    report::finished(&stores, &loaded, &manifest, output, end).await
}

/// Makes sure that the secrets are there by which others are asked and told.
fn check_secrets(means: &Means, job: &CheckedJob) -> anyhow::Result<()> {
    means.check(job)?;
    for remote in job.remotes() {
        Credentials::find(&remote.spec, &means.secrets)?;
    }
    Ok(())
}

/// What is reported of a run that came to its end after `took`; nothing of one that was stopped.
fn end(ended: RunEnd, took: Duration, again: &str) -> Option<(Box<Manifest>, End)> {
    match ended {
        RunEnd::Finished(manifest) => Some((manifest, End::Finished(took))),
        RunEnd::GivenUp(give_up, manifest) => {
            let again = Invocation::new().command(again);
            let end = End::GivenUp {
                give_up,
                took,
                again,
            };
            Some((manifest, end))
        }
        RunEnd::Stopped => None,
    }
}

/// Says how a job ended that was finished before, unless its input is another one now.
async fn before(
    stores: &Stores,
    loaded: &Loaded,
    manifest: &Manifest,
    output: OutputMode,
) -> anyhow::Result<ExitCode> {
    if let Some(changed) = changed::input(stores, &loaded.job.input, &manifest.inputs).await {
        return Ok(refuse(&changed));
    }
    // A table may have been dropped or emptied since.
    if let Some(sink) = Sink::open(&loaded.job, &Secrets::Environment).await? {
        let output = stores.open(&loaded.job.output.uri)?;
        sink.load(&output, &manifest.parts).await?;
    }
    report::finished(stores, loaded, manifest, output, End::Before).await
}

/// What of its input keeps a run that is not begun from running again what failed in the one before it,
/// which is pinned to the files as they were.
async fn changed_since(stores: &Stores, job: &CheckedJob) -> anyhow::Result<Option<Changed>> {
    if job.run == FIRST_RUN {
        return Ok(None);
    }
    Ok(match run::look(stores, job).await? {
        Drafted::Standing(_) => None,
        Drafted::New(plan) => changed::open_shards(stores, job, &plan, &[]).await,
    })
}

/// Refuses a job whose input is another one now.
fn refuse(changed: &Changed) -> ExitCode {
    eprintln!(
        "error: {changed}: write to another output, with spec.incremental.from naming this one"
    );
    ExitCode::FAILURE
}

/// Tells whom the job names how it ended. An end that nobody hears of is an end all the same.
async fn tell(means: &Means, job: &CheckedJob, ended: &anyhow::Result<RunEnd>) {
    let event = match ended {
        Ok(RunEnd::Stopped) => return,
        Ok(RunEnd::Finished(manifest)) => notify::finished(job, manifest, None),
        Ok(RunEnd::GivenUp(give_up, manifest)) => {
            notify::finished(job, manifest, Some(give_up.reason()))
        }
        Err(error) => notify::failed(job, chain(error.as_ref())),
    };
    if let Some(problem) = means.tell(job, &event).await {
        eprintln!("warning: {problem}");
    }
}

/// The board of a job, if one is asked for.
async fn opened(
    options: Option<BoardOptions>,
    job: &CheckedJob,
    link_local: LinkLocal,
) -> anyhow::Result<Option<Board>> {
    let Some(options) = options else {
        return Ok(None);
    };
    let stores = Stores::from_env(link_local);
    Ok(Some(Board::open(options, job, &stores).await?))
}

/// Works off the run `next` and those after it that the job asks for.
async fn runs(
    stores: &Stores,
    loaded: &Loaded,
    mut next: RunNumber,
    answering: &Answering,
    shows: Shows<'_>,
) -> anyhow::Result<RunEnd> {
    let started_at = SystemTime::now();
    // A table that results cannot be loaded into is found before anything is computed for it.
    let sink = Sink::open(&loaded.job, &Secrets::Environment).await?;
    loop {
        let job = loaded.job.at_run(next);
        let draft = run::draft(stores, &job).await?;
        let run = LocalRun {
            stores,
            loaded,
            job: &job,
            sink: sink.as_ref(),
            shows,
        };
        match work(run, draft, answering).await? {
            RunEnd::Finished(manifest) => {
                trace::write_whole(&job, &manifest, started_at);
                // A run that `retry` began is later than what the manifest asks for.
                if next >= loaded.job.run {
                    return Ok(RunEnd::Finished(manifest));
                }
                next += 1;
            }
            RunEnd::GivenUp(give_up, manifest) => {
                trace::write_whole(&job, &manifest, started_at);
                return Ok(RunEnd::GivenUp(give_up, manifest));
            }
            RunEnd::Stopped => return Ok(RunEnd::Stopped),
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

/// Who is shown how far a run is.
#[derive(Clone, Copy)]
struct Shows<'a> {
    output: OutputMode,
    board: Option<&'a Board>,
}

/// What one run is about.
#[derive(Clone, Copy)]
struct LocalRun<'a> {
    stores: &'a Stores,
    loaded: &'a Loaded,
    job: &'a CheckedJob,
    sink: Option<&'a Sink>,
    shows: Shows<'a>,
}

/// Why a job is not to be run at all.
fn refused(spec: &BatchJobSpec) -> Option<&'static str> {
    if spec.cancel {
        return Some("spec.cancel is true: the job is given up; remove it, and the job runs");
    }
    spec.suspend
        .then_some("spec.suspend is true: set it to false, and the job runs")
}

async fn work(run: LocalRun<'_>, draft: Draft, answering: &Answering) -> anyhow::Result<RunEnd> {
    let LocalRun {
        stores,
        loaded,
        job,
        sink: _,
        shows,
    } = run;
    let service = local_models::fetched(stores, &loaded.service).await?;
    let server = LocalServer::start(answering, &service, loaded).await?;
    let has_others = job.routing.is_some();
    let lease_options = LeaseOptions {
        lease_ttl: LEASE_TTL,
        deliveries_max: job.deliveries_max,
    };
    let progress = Arc::new(Progress::default());
    let stop = CancellationToken::new();
    let options = WorkOptions {
        server: server.address(has_others),
        leases: Arc::new(MemoryLeaseStore::new(lease_options)),
        lease_ttl: LEASE_TTL,
        progress: progress.clone(),
        stop: stop.clone(),
    };
    // Ends with the process: once the run is over, a signal ends what is left to say.
    tokio::spawn(stop_on_signal(stop.clone()));
    let driven = tokio::select! {
        end = drive(&server, run, draft, &options) => end,
        error = server.failed() => Err(error),
        never = follow(shows.board, job.run, &progress) => match never {},
    };
    stop.cancel();
    server.stop().await;
    driven
}

/// Tells of `progress` at the board, if there is one.
async fn follow(board: Option<&Board>, run: RunNumber, progress: &Progress) -> Infallible {
    match board {
        Some(board) => board.follow(run, progress).await,
        None => std::future::pending().await,
    }
}

/// Drives the run once the server has been ready. Only then is its plan written: a manifest that names a
/// model that cannot be loaded can be mended, and the output does not hold the mistake against it.
async fn drive(
    server: &LocalServer,
    run: LocalRun<'_>,
    draft: Draft,
    options: &WorkOptions,
) -> anyhow::Result<RunEnd> {
    tokio::select! {
        ready = server.ready() => ready?,
        () = options.stop.cancelled() => return Ok(RunEnd::Stopped),
    }
    let LocalRun {
        stores,
        loaded: _,
        job,
        sink,
        shows,
    } = run;
    let planned = async {
        let prepared = run::settle(stores, job, draft).await?;
        let display = Display::new(shows.output, job, &prepared);
        if shows.output == OutputMode::Text {
            foretell(stores, job, &prepared).await;
        }
        Ok::<_, anyhow::Error>((prepared, display))
    };
    // A plan may take as long as reading all of the input, and one that is not written is none.
    let (prepared, display) = tokio::select! {
        planned = planned => planned?,
        () = options.stop.cancelled() => return Ok(RunEnd::Stopped),
    };
    tokio::select! {
        end = run::drive(stores, job, prepared, options, sink) => Ok(end?),
        never = display.show(&options.progress) => match never {},
    }
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
