//! `millrace-worker`: one step of a run per process, or the worker of a service.
//!
//! This is what the pods of a cluster run; `millrace run` drives the same steps in one process.

mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use millrace_protocol::report::Report;
use millrace_telemetry::TelemetryOptions;
use millrace_worker::memory;
use millrace_worker::work::client::ServerUrl;

/// Exit code of `finish` when shards were given up.
const EXIT_FAILED_SHARDS: u8 = 3;
/// Exit code of `finish` when shards are open and were queued again.
const EXIT_INCOMPLETE: u8 = 4;

/// Runs one step of a BatchJob, or attends to all jobs of a service.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage; 3 finish: some shards were given up; 4 finish:
/// some shards are open and were queued again. With a report 3 and 4 are 0, since the report says it.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// File that gets a report of at most 4 KiB of JSON, such as /dev/termination-log.
    #[arg(long, global = true, env = "MILLRACE_REPORT")]
    report: Option<PathBuf>,
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Plans the run, or reads the plan that is there, and queues its open shards.
    Plan(Job),
    /// Works off shards of one run until none is left or SIGTERM comes.
    Work {
        #[command(flatten)]
        job: Job,
        #[command(flatten)]
        server: Server,
        #[command(flatten)]
        cache: Cache,
    },
    /// Verifies that commits cover the plan and writes the manifest.
    Finish {
        #[command(flatten)]
        job: Job,
        /// Gives up, for this reason, all shards that have no commit.
        #[arg(long, env = "MILLRACE_GIVE_UP", value_name = "REASON")]
        give_up: Option<String>,
        /// The same in one word, for whom the job names in `spec.notify`.
        #[arg(long, env = "MILLRACE_GIVE_UP_REASON", value_name = "WORD")]
        give_up_reason: Option<String>,
    },
    /// Tells a receiver how a job ended that was not finished.
    Notify(Notify),
    /// Works off shards of whatever jobs a service has, until SIGTERM comes.
    Serve(Serve),
    /// Serves the result lines of an output over HTTP to whoever brings a token, until SIGTERM comes.
    Read(Read),
    /// Fetches a service's models into a folder and verifies them.
    Models(Models),
    /// Asks whether the Redis of the leases can be reached.
    Check(Leases),
}

/// What all that use leases take.
#[derive(Debug, Args)]
struct Leases {
    /// Redis that holds the leases, such as `redis://127.0.0.1:6379`.
    #[arg(long = "redis", env = "MILLRACE_LEASES_REDIS_URL")]
    redis_url: String,
    /// Milliseconds that a lease holds without renewal.
    #[arg(long, env = "MILLRACE_LEASE_TTL_MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(300..=3_600_000))]
    lease_ttl_ms: u64,
}

/// What the steps of one run take.
#[derive(Debug, Args)]
struct Job {
    /// File or folder with the BatchJob and its InferenceService.
    #[arg(short = 'f', long, env = "MILLRACE_MANIFEST")]
    manifest: PathBuf,
    /// Folder of a mounted Secret with the credentials of input and output, one file per `AWS_…`
    /// variable. Without it the environment counts.
    #[arg(long, env = "MILLRACE_CREDENTIALS")]
    credentials: Option<PathBuf>,
    /// Folder with one folder per mounted Secret, named like it, for `spec.output.postgres` and
    /// `spec.notify`. Without it the environment counts.
    #[arg(long, env = "MILLRACE_SECRETS")]
    secrets: Option<PathBuf>,
    #[command(flatten)]
    leases: Leases,
}

/// Where the server that answers rows is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Server {
    /// Unix socket of the inference-server.
    #[arg(long = "server", env = "MILLRACE_SERVER_SOCKET")]
    socket: Option<PathBuf>,
    /// Where the server of a service with `spec.runtime` listens, such as http://127.0.0.1:8000.
    #[arg(long = "server-url", env = "MILLRACE_SERVER_URL")]
    url: Option<ServerUrl>,
    /// There is none: the API of a service with `spec.remote` is asked.
    #[arg(long, env = "MILLRACE_REMOTE")]
    remote: bool,
}

/// Where the answers of APIs elsewhere are kept.
#[derive(Debug, Args)]
struct Cache {
    /// Redis that shares kept answers with other workers, where the service has spec.cache and
    /// spec.remote. One of its own that forgets what was used least lately.
    #[arg(
        long,
        env = "MILLRACE_CACHE_REDIS_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    cache_redis_url: Option<String>,
}

/// What telling a receiver takes.
#[derive(Debug, Args)]
struct Notify {
    /// The receiver.
    #[arg(long, env = "MILLRACE_NOTIFY_URL")]
    url: String,
    /// The event, as JSON.
    #[arg(long, env = "MILLRACE_NOTIFY_EVENT")]
    event: String,
    /// Name of the mounted Secret that events are signed with.
    #[arg(long, env = "MILLRACE_NOTIFY_SECRET_NAME")]
    secret: Option<String>,
    /// Key in it.
    #[arg(long, env = "MILLRACE_NOTIFY_SECRET_KEY", requires = "secret")]
    key: Option<String>,
    /// Folder with one folder per mounted Secret, named like it.
    #[arg(
        long,
        env = "MILLRACE_SECRETS",
        default_value = "/var/run/millrace/secrets"
    )]
    secrets: PathBuf,
}

/// What the worker of a service takes.
#[derive(Debug, Args)]
struct Serve {
    /// Namespace of the service.
    #[arg(long, env = "MILLRACE_NAMESPACE")]
    namespace: String,
    /// Name of the InferenceService.
    #[arg(long, env = "MILLRACE_SERVICE_NAME")]
    service: String,
    /// Name of this pod, by which the worker reports how busy it is.
    #[arg(long, env = "HOSTNAME", default_value = "worker")]
    pod: String,
    /// Folder with one folder per mounted Secret, named like it.
    #[arg(
        long,
        env = "MILLRACE_SECRETS",
        default_value = "/var/run/millrace/secrets"
    )]
    secrets: PathBuf,
    /// Address for /health, /ready, /drain and /metrics.
    #[arg(long, env = "MILLRACE_WORKER_LISTEN", default_value = "0.0.0.0:8081")]
    listen: String,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    cache: Cache,
    #[command(flatten)]
    leases: Leases,
}

/// What serving results takes.
#[derive(Debug, Args)]
struct Read {
    /// The output, as in the job's status.output.
    #[arg(long, env = "MILLRACE_OUTPUT")]
    output: String,
    /// Name of the job, by which requests name its results.
    #[arg(long, env = "MILLRACE_JOB")]
    job: String,
    /// File with the token that requests must bring.
    #[arg(long, env = "MILLRACE_READ_TOKEN_FILE")]
    token_file: PathBuf,
    /// Folder of a mounted Secret with the credentials of the output, one file per `AWS_…` variable. Without
    /// it the environment counts.
    #[arg(long, env = "MILLRACE_CREDENTIALS")]
    credentials: Option<PathBuf>,
    /// Address for /api/v1/jobs/JOB/results and /health.
    #[arg(long, env = "MILLRACE_READ_LISTEN", default_value = "0.0.0.0:8083")]
    listen: String,
}

/// What fetching models takes.
#[derive(Debug, Args)]
struct Models {
    /// File with the InferenceService.
    #[arg(short = 'f', long, env = "MILLRACE_MANIFEST")]
    manifest: PathBuf,
    /// Folder that gets one folder per model.
    #[arg(long, env = "MILLRACE_MODELS")]
    to: PathBuf,
    /// Folder with one folder per mounted Secret, named like it.
    #[arg(long, env = "MILLRACE_SECRETS")]
    secrets: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let telemetry = millrace_telemetry::start(TelemetryOptions {
        service: "millrace-worker",
        log: "info",
        traces: true,
    });
    memory::give_back_large_blocks();
    let Cli { report, step } = Cli::parse();
    let ended = match step {
        Step::Plan(job) => steps::plan(job).await.map(Some),
        Step::Work { job, server, cache } => steps::work(job, server, cache).await.map(|()| None),
        Step::Finish {
            job,
            give_up,
            give_up_reason,
        } => steps::finish(job, give_up, give_up_reason).await.map(Some),
        Step::Notify(notify) => steps::notify(notify).await.map(|()| None),
        Step::Serve(serve) => steps::serve(serve).await.map(|()| None),
        Step::Read(read) => steps::read(read).await.map(|()| None),
        Step::Models(models) => steps::models(models).await.map(|()| None),
        Step::Check(leases) => steps::check(leases).await.map(|()| None),
    };
    let is_reported = report.is_some();
    if let Some(file) = report {
        let said = match &ended {
            Ok(said) => said.clone(),
            Err(error) => Some(Report::failed(&millrace_telemetry::chain(error.as_ref()))),
        };
        if let Some(said) = said {
            std::fs::write(file, said.to_message())?;
        }
    }
    telemetry.flush().await;
    Ok(match ended? {
        // The report says it, and a Job would take the code for a pod that is to be tried again.
        Some(_) if is_reported => ExitCode::SUCCESS,
        Some(Report::Finished {
            complete: false, ..
        }) => EXIT_FAILED_SHARDS.into(),
        Some(Report::Incomplete { .. }) => EXIT_INCOMPLETE.into(),
        Some(_) | None => ExitCode::SUCCESS,
    })
}
