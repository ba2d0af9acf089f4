//! The inference-server binary: reads the options, supervises or serves, and says by its exit code
//! whether starting it again can help.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use millrace_answers::disk::DiskOptions;
use millrace_crds::inference_service::Task;
use millrace_inference_server::{
    options::Options,
    server::{Server, ServerConfig, ServerError},
    service_file,
};
use millrace_models::{
    model::{BackendChoice, LoadOptions},
    source,
};
use millrace_supervisor::{Address, CommandSpec, EXIT_CODE_BROKEN, Failure, Probe, Supervisor};
use millrace_telemetry::{Telemetry, TelemetryOptions, on_signal};

fn main() -> ExitCode {
    let options = Options::parse();
    let telemetry = millrace_telemetry::start(TelemetryOptions {
        service: "millrace-inference-server",
        log: "info",
        traces: !options.supervise,
    });
    match run(&options, telemetry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with the whole chain: the supervisor quotes the last lines.
            tracing::error!("{error:#}");
            if is_broken(&error) {
                (EXIT_CODE_BROKEN as u8).into()
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Whether the service, its models or the options are at fault rather than the moment.
fn is_broken(error: &anyhow::Error) -> bool {
    error.is::<service_file::ServiceFileError>()
        || error.downcast_ref().is_some_and(ServerError::is_permanent)
        || matches!(error.downcast_ref(), Some(Failure::Broken { .. }))
}

fn run(options: &Options, telemetry: Telemetry) -> anyhow::Result<()> {
    if let Some(folder) = &options.print_digest {
        return print_digest(folder);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = if options.supervise {
        runtime.block_on(supervise(options))
    } else {
        runtime.block_on(serve(options))
    };
    runtime.block_on(telemetry.flush());
    // A model that is still loading, or a tokeniser past its deadline, must not hold the exit up.
    runtime.shutdown_background();
    outcome
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    let stop = on_signal()?;
    let server = Server::bind(config(options)?).await?;
    Ok(server.run(stop.cancelled_owned()).await?)
}

fn config(options: &Options) -> anyhow::Result<ServerConfig> {
    let service = options.service.as_deref().context("--service is missing")?;
    let limits = &options.limits;
    let backend = match &options.fake_backend {
        Some(fake) => {
            tracing::warn!("the models are stand-ins for tests: their answers mean nothing");
            BackendChoice::Fake(fake.parse()?)
        }
        None => BackendChoice::Torch,
    };
    Ok(ServerConfig {
        spec: service_file::read(service)?,
        load: LoadOptions {
            model_cache: options.model_cache(),
            threads: options.threads(),
            allow_torchscript: options.allow_torchscript,
            text_chars_max: limits.max_text_chars,
            tokenize_deadline: Duration::from_millis(limits.tokenize_deadline_ms),
            backend,
        },
        uds: options.uds.clone(),
        listen: options.listen.clone(),
        tokenize_threads: options
            .tokenize_threads
            .unwrap_or_else(|| options.threads()),
        cache_redis_url: options.cache_redis_url.clone(),
        cache_disk: options.cache_folder.clone().map(|folder| DiskOptions {
            folder,
            bytes_max: options.cache_folder_max_bytes,
        }),
        namespace: options.namespace.clone(),
        api_keys: options.api_keys.clone(),
        limits: limits.http(),
        drain_delay: Duration::from_millis(limits.drain_delay_ms),
        drain_deadline: Duration::from_millis(limits.drain_deadline_ms),
    })
}

/// Runs this program again as a child, without `--supervise`, until it is stopped or broken.
async fn supervise(options: &Options) -> anyhow::Result<()> {
    let limits = &options.limits;
    let address = match (&options.uds, &options.listen) {
        (Some(path), _) => Address::Unix(path.clone()),
        (None, Some(address)) => Address::Tcp(address.clone()),
        (None, None) => return Err(ServerError::NoListener.into()),
    };
    let mut spec = CommandSpec::new(std::env::current_exe()?);
    spec.args = std::env::args_os()
        .skip(1)
        .filter(|arg| arg != "--supervise")
        .collect();
    spec.env_remove = vec!["MILLRACE_SUPERVISE".into()];
    spec.probe = Some(Probe {
        address,
        path: "/ready".into(),
    });
    spec.drain_deadline =
        Duration::from_millis(limits.drain_delay_ms + limits.drain_deadline_ms + 5_000);
    let stop = on_signal()?;
    let child = Supervisor::start(spec)?;
    tokio::select! {
        () = stop.cancelled() => child.stop().await,
        failure = child.failed() => return Err(failure.into()),
    }
    Ok(())
}

/// The digest depends on which file holds the weights, so a folder without safetensors is taken for
/// a TorchScript module's.
fn print_digest(folder: &Path) -> anyhow::Result<()> {
    let torchscript = folder.join("model.pt").is_file()
        && !folder.join("model.safetensors").is_file()
        && !folder.join("model.safetensors.index.json").is_file();
    let task = if torchscript {
        Task::TorchScript
    } else {
        Task::Embedding
    };
    println!("{}", source::open(folder, task, None)?.digest);
    Ok(())
}
