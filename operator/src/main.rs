//! `millrace-operator`: stands for election, and while it leads reconciles both kinds.

use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::controller::Action;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{Controller, WatchStreamExt, watcher};
use kube::{Api, Client, Config, Resource, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};
use millrace_operator::api::{self, ApiLimits};
use millrace_operator::config::Options;
use millrace_operator::context::Context;
use millrace_operator::election::Election;
use millrace_operator::http::{self, Shown};
use millrace_operator::names::{FIELD_MANAGER, service_of};
use millrace_operator::objects::Objects;
use millrace_operator::term::Term;
use millrace_operator::visit::{VisitError, after_error, watched};
use millrace_operator::{batch_job, crd_check, inference_service};
use millrace_telemetry::{TelemetryOptions, on_signal};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let telemetry = millrace_telemetry::start(TelemetryOptions {
        service: "millrace-operator",
        log: "info",
        traces: true,
    });
    let ended = run(Options::parse()).await;
    telemetry.flush().await;
    ended
}

async fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::infer()
        .await
        .context("the API server cannot be found")?;
    let term = Term::default();
    let within_term = term.client(config.clone())?;
    let stand = Stand {
        client: Client::try_from(config)?,
        term,
    };
    let shown = Shown::new(Arc::new(Context::new(within_term, options.clone())?));
    let listener = tokio::net::TcpListener::bind(&options.listen)
        .await
        .with_context(|| format!("{} cannot be listened on", options.listen))?;
    let answering = tokio::spawn(http::listen(listener, shown.clone()));
    let stop = on_signal()?;
    let api = match &options.api_listen {
        Some(address) => Some(serve_api(address, shown.clone(), stop.clone()).await?),
        None => None,
    };
    // A process that must not lead any more ends at once, whoever still listens.
    lead(options, stand, shown, answering, stop.clone()).await?;
    if let Some(api) = api {
        // Whoever stays to be told how far a job is hears that it is over here.
        stop.cancel();
        api.await?;
    }
    Ok(())
}

/// Begins to tell whoever may look how far jobs are, until `stop` is cancelled.
async fn serve_api(
    address: &str,
    shown: Shown,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be listened on"))?;
    let limits = ApiLimits::default();
    Ok(tokio::spawn(api::listen(listener, shown, limits, stop)))
}

/// What this process stands for election with.
struct Stand {
    /// A client that may write at any time.
    client: Client,
    /// For how long this process leads.
    term: Term,
}

/// Stands for election, and reconciles while this process leads, until `stop` is cancelled.
async fn lead(
    options: Options,
    stand: Stand,
    shown: Shown,
    answering: JoinHandle<std::io::Result<()>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Stand { client, term } = stand;
    tokio::select! {
        checked = crd_check::wait(&client) => checked?,
        () = stop.cancelled() => return Ok(()),
    }
    let mut election = Election::new(client, term, &options);
    let won = async {
        if !election.try_win().await {
            let standing_by = stand_by(shown.ctx.clone(), shown.standing_by.clone());
            let _standing_by = AbortOnDropHandle::new(tokio::spawn(standing_by));
            election.win().await;
        }
    };
    tokio::select! {
        () = won => {}
        () = stop.cancelled() => return Ok(()),
    }
    tracing::info!(identity = options.identity, "this process leads");
    shown.leads.store(true, Ordering::Relaxed);
    let ctx = shown.ctx.clone();
    let _keeping = AbortOnDropHandle::new(tokio::spawn(async move { ctx.keep_users().await }));
    let reconciling = reconcile(shown.ctx, stop.clone());
    tokio::select! {
        // First: a process that was away looks whether it still leads before it does anything else.
        biased;
        () = election.keep() => anyhow::bail!("the election is lost"),
        () = reconciling => {
            election.resign().await;
            Ok(())
        }
        ended = answering => Ok(ended??),
    }
}

/// Watches both kinds until this process leads, so that it can say what waits for a service.
async fn stand_by(ctx: Arc<Context>, shown: Arc<OnceLock<Objects>>) {
    let (jobs, write_jobs) = reflector::store();
    let (services, write_services) = reflector::store();
    // A process stands by once.
    let _ = shown.set(Objects { jobs, services });
    futures::join!(keep_up(&ctx, write_jobs), keep_up(&ctx, write_services));
}

/// Keeps a store as the objects are.
async fn keep_up<K>(ctx: &Context, writer: Writer<K>)
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let api: Api<K> = api(&ctx.client, ctx.options.watch_namespace.as_deref());
    let seen = watcher(api, watcher::Config::default()).default_backoff();
    reflector::reflector(writer, seen)
        .for_each(|_| async {})
        .await;
}

/// Runs both controllers until `stop` is cancelled and the visits in hand are over.
async fn reconcile(ctx: Arc<Context>, stop: CancellationToken) {
    let (client, namespace) = (ctx.client.clone(), ctx.options.watch_namespace.clone());
    let within = namespace.as_deref();
    let config = watcher::Config::default();
    // Of kinds that a cluster is full of, only what the operator made.
    let ours = config
        .clone()
        .labels(&format!("app.kubernetes.io/managed-by={FIELD_MANAGER}"));
    let jobs: Api<BatchJob> = api(&client, within);
    let jobs = Controller::new(jobs, config.clone());
    let services: Api<InferenceService> = api(&client, within);
    let services = Controller::new(services, config.clone());
    // Only a process that leads comes here, and it leads once.
    let _ = ctx.objects.set(Objects {
        jobs: jobs.store(),
        services: services.store(),
    });

    let objects = ctx.objects().clone();
    let for_jobs = jobs
        .owns(api::<Job>(&client, within), config.clone())
        .owns(api::<ConfigMap>(&client, within), ours.clone())
        .owns(api::<NetworkPolicy>(&client, within), ours.clone())
        .owns(api::<Deployment>(&client, within), ours.clone())
        .owns(api::<Service>(&client, within), ours.clone())
        // A job that waits for its service begins when the service is there.
        .watches(
            api::<InferenceService>(&client, within),
            config.clone(),
            move |service: InferenceService| {
                let namespace = service.namespace().unwrap_or_default();
                let jobs = objects.jobs_asking(&namespace, &service.name_any());
                jobs.into_iter()
                    .map(|job| ObjectRef::from_obj(job.as_ref()))
            },
        )
        .graceful_shutdown_on(cancelled(&stop))
        .run(visit_job, after_error, ctx.clone())
        .for_each(|_| async {});

    let for_services = services
        .owns(api::<Deployment>(&client, within), config.clone())
        .owns(api::<ConfigMap>(&client, within), ours.clone())
        .owns(api::<Service>(&client, within), ours.clone())
        .owns(api::<PodDisruptionBudget>(&client, within), ours.clone())
        .owns(api::<NetworkPolicy>(&client, within), ours)
        .watches(api::<BatchJob>(&client, within), config, |job: BatchJob| {
            let service = ObjectRef::new(&service_of(&job));
            Some(service.within(&job.namespace().unwrap_or_default()))
        })
        .graceful_shutdown_on(cancelled(&stop))
        .run(visit_service, after_error, ctx)
        .for_each(|_| async {});
    futures::join!(for_jobs, for_services);
}

async fn visit_job(job: Arc<BatchJob>, ctx: Arc<Context>) -> Result<Action, VisitError> {
    let visit = batch_job::visit(job.clone(), ctx.clone());
    let run = batch_job::trace::of(&job);
    watched(job.as_ref(), Some(run), &ctx.visits, visit).await
}

async fn visit_service(
    service: Arc<InferenceService>,
    ctx: Arc<Context>,
) -> Result<Action, VisitError> {
    let visit = inference_service::visit(service.clone(), ctx.clone());
    watched(service.as_ref(), None, &ctx.visits, visit).await
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

fn cancelled(stop: &CancellationToken) -> impl Future<Output = ()> + Send + Sync + 'static {
    stop.clone().cancelled_owned()
}
