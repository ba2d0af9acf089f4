//! `millrace-operator`: stands for election, and while it leads reconciles both kinds.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};
use millrace_operator::config::Options;
use millrace_operator::context::Context;
use millrace_operator::election::Election;
use millrace_operator::http::{self, Leads};
use millrace_operator::inference_service::ServiceContext;
use millrace_operator::visit::after_error;
use millrace_operator::{batch_job, crd_check, inference_service};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("MILLRACE_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    let options = Options::parse();
    let client = Client::try_default()
        .await
        .context("the API server cannot be found")?;
    let leads = Leads::default();
    let listener = tokio::net::TcpListener::bind(&options.listen)
        .await
        .with_context(|| format!("{} cannot be listened on", options.listen))?;
    let answering = tokio::spawn(http::listen(listener, leads.clone()));
    let stop = on_signal()?;
    tokio::select! {
        checked = crd_check::wait(&client) => checked?,
        () = stop.cancelled() => return Ok(()),
    }
    let mut election = Election::new(client.clone(), &options.namespace, &options.identity);
    tokio::select! {
        () = election.win() => {}
        () = stop.cancelled() => return Ok(()),
    }
    tracing::info!(identity = options.identity, "this process leads");
    leads.store(true, Ordering::Relaxed);
    let reconciling = reconcile(client, options, stop.clone());
    tokio::select! {
        () = reconciling => {
            election.resign().await;
            Ok(())
        }
        () = election.keep() => anyhow::bail!("the election is lost"),
        ended = answering => Ok(ended??),
    }
}

/// Runs both controllers until `stop` is cancelled and the visits in hand are over.
async fn reconcile(client: Client, options: Options, stop: CancellationToken) {
    let namespace = options.watch_namespace.clone();
    let ctx = Arc::new(Context::new(client.clone(), options));
    let config = watcher::Config::default();

    let jobs: Api<BatchJob> = api(&client, namespace.as_deref());
    let controller = Controller::new(jobs, config.clone());
    let stored_jobs = controller.store();
    let waiting = controller.store();
    let for_jobs = controller
        .owns(api::<Job>(&client, namespace.as_deref()), config.clone())
        // A job that waits for its service begins when the service is there.
        .watches(
            api::<InferenceService>(&client, namespace.as_deref()),
            config.clone(),
            move |service: InferenceService| jobs_of(&waiting, &service),
        )
        .graceful_shutdown_on(cancelled(&stop))
        .run(batch_job::visit, after_error, ctx.clone())
        .for_each(|_| async {});

    let services: Api<InferenceService> = api(&client, namespace.as_deref());
    let for_services = Controller::new(services, config.clone())
        .owns(
            api::<Deployment>(&client, namespace.as_deref()),
            config.clone(),
        )
        .watches(
            api::<BatchJob>(&client, namespace.as_deref()),
            config,
            |job: BatchJob| {
                let service = ObjectRef::new(&job.spec.service_ref.name);
                Some(service.within(&job.namespace().unwrap_or_default()))
            },
        )
        .graceful_shutdown_on(cancelled(&stop))
        .run(
            inference_service::visit,
            after_error,
            Arc::new(ServiceContext {
                base: ctx,
                jobs: stored_jobs,
            }),
        )
        .for_each(|_| async {});
    futures::join!(for_jobs, for_services);
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn jobs_of(
    jobs: &reflector::Store<BatchJob>,
    service: &InferenceService,
) -> Vec<ObjectRef<BatchJob>> {
    let (name, namespace) = (service.name_any(), service.namespace());
    let of_service =
        |job: &Arc<BatchJob>| job.spec.service_ref.name == name && job.namespace() == namespace;
    let jobs = jobs.state().into_iter().filter(of_service);
    jobs.map(|job| ObjectRef::from_obj(job.as_ref())).collect()
}

fn cancelled(stop: &CancellationToken) -> impl Future<Output = ()> + Send + Sync + 'static {
    stop.clone().cancelled_owned()
}

/// Cancelled by SIGTERM or SIGINT.
fn on_signal() -> std::io::Result<CancellationToken> {
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
    Ok(stop)
}
