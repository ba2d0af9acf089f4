//! `millrace-operator`: stands for election, and while it leads reconciles both kinds.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use clap::Parser;
use futures::channel::mpsc::{UnboundedReceiver, unbounded};
use futures::stream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Config, ResourceExt};
use millrace_crds::{BatchJob, InferenceService};
use millrace_operator::api::{self, ApiLimits};
use millrace_operator::config::Options;
use millrace_operator::context::Context;
use millrace_operator::election::Election;
use millrace_operator::http::{self, Shown};
use millrace_operator::names::{FIELD_MANAGER, service_of};
use millrace_operator::objects::{Namespaced, Objects};
use millrace_operator::term::Term;
use millrace_operator::visit::{VisitError, after_error, watched};
use millrace_operator::watch::{Requests, Told, follow, of_objects, of_owners};
use millrace_operator::{batch_job, crd_check, inference_service};
use millrace_telemetry::{TelemetryOptions, on_signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

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
    let (client, namespace) = (&ctx.client, ctx.options.watch_namespace.as_deref());
    let jobs = follow::<BatchJob>(api(client, namespace));
    let services = follow::<InferenceService>(api(client, namespace));
    // A process stands by once.
    let _ = shown.set(Objects {
        jobs: jobs.store,
        services: services.store,
    });
    futures::join!(
        jobs.told.for_each(|_| async {}),
        services.told.for_each(|_| async {})
    );
}

/// Runs both controllers until `stop` is cancelled and the visits in hand are over.
async fn reconcile(ctx: Arc<Context>, stop: CancellationToken) {
    let (client, namespace) = (&ctx.client, ctx.options.watch_namespace.as_deref());
    let jobs = follow::<BatchJob>(api(client, namespace));
    let services = follow::<InferenceService>(api(client, namespace));
    // Only a process that leads comes here, and it leads once.
    let _ = ctx.objects.set(Objects {
        jobs: jobs.store.clone(),
        services: services.store.clone(),
    });
    let (told_of_jobs, of_jobs) = heard(jobs.told);
    let (told_of_services, of_services) = heard(services.told);
    let visits_to_jobs = visits_to_jobs(&ctx, told_of_jobs, of_services);
    let visits_to_services = visits_to_services(&ctx, told_of_services, of_jobs);
    let for_jobs = applier(
        |job, ctx| spawned(visit_job(job, ctx)),
        after_error,
        ctx.clone(),
        jobs.store,
        visits_to_jobs.take_until(stop.clone().cancelled_owned()),
        controller::Config::default(),
    );
    let for_services = applier(
        |service, ctx| spawned(visit_service(service, ctx)),
        after_error,
        ctx,
        services.store,
        visits_to_services.take_until(stop.cancelled_owned()),
        controller::Config::default(),
    );
    futures::join!(
        for_jobs.for_each(|_| async {}),
        for_services.for_each(|_| async {})
    );
}

/// What asks for visits to jobs: jobs that are `told` of, what the operator made for them, and services.
fn visits_to_jobs(
    ctx: &Context,
    told: Told<BatchJob>,
    of_services: UnboundedReceiver<Arc<InferenceService>>,
) -> Requests<BatchJob> {
    let (client, namespace) = (&ctx.client, ctx.options.watch_namespace.as_deref());
    let (any, ours, of_job) = (watcher::Config::default(), ours(), &ctx.jobs);
    let objects = ctx.objects().clone();
    let visits = stream::select_all([
        of_objects(told, &objects.jobs, of_job),
        of_owners(api::<Job>(client, namespace), any, of_job),
        of_owners(api::<ConfigMap>(client, namespace), ours.clone(), of_job),
        of_owners(
            api::<NetworkPolicy>(client, namespace),
            ours.clone(),
            of_job,
        ),
        of_owners(api::<Deployment>(client, namespace), ours.clone(), of_job),
        of_owners(api::<Service>(client, namespace), ours, of_job),
        // A job that waits for its service begins when the service is there.
        of_services
            .flat_map(move |service| {
                let namespace = service.namespace().unwrap_or_default();
                stream::iter(objects.jobs_asking(&namespace, &service.name_any()))
            })
            .map(|job| Ok(ObjectRef::from_obj(job.as_ref()).into()))
            .boxed(),
    ]);
    visits.boxed()
}

/// What asks for visits to services: services that are `told` of, what the operator made for them, and
/// jobs.
fn visits_to_services(
    ctx: &Context,
    told: Told<InferenceService>,
    of_jobs: UnboundedReceiver<Arc<BatchJob>>,
) -> Requests<InferenceService> {
    let (client, namespace) = (&ctx.client, ctx.options.watch_namespace.as_deref());
    let (any, ours, of_service) = (watcher::Config::default(), ours(), &ctx.services);
    let visits = stream::select_all([
        of_objects(told, &ctx.objects().services, of_service),
        of_owners(api::<Deployment>(client, namespace), any, of_service),
        of_owners(
            api::<ConfigMap>(client, namespace),
            ours.clone(),
            of_service,
        ),
        of_owners(api::<Service>(client, namespace), ours.clone(), of_service),
        of_owners(
            api::<PodDisruptionBudget>(client, namespace),
            ours.clone(),
            of_service,
        ),
        of_owners(api::<NetworkPolicy>(client, namespace), ours, of_service),
        of_jobs
            .map(|job| {
                let service = ObjectRef::new(&service_of(&job));
                Ok(service.within(&job.namespace().unwrap_or_default()).into())
            })
            .boxed(),
    ]);
    visits.boxed()
}

/// Of kinds that a cluster is full of, only what the operator made.
fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={FIELD_MANAGER}"))
}

/// What is told of a kind, for its own controller, and once more for the other one. The second holds what
/// the other controller has not come to yet, which it does whenever it is polled.
fn heard<K: Namespaced>(told: Told<K>) -> (Told<K>, UnboundedReceiver<Arc<K>>) {
    let (teller, other) = unbounded();
    let told = told.inspect_ok(move |object| {
        // The other controller hears nothing more only once both end.
        teller.unbounded_send(object.clone()).ok();
    });
    (told.boxed(), other)
}

/// A visit as a task of its own: visits to other objects go on meanwhile.
fn spawned(
    visit: impl Future<Output = Result<Action, VisitError>> + Send + 'static,
) -> impl Future<Output = Result<Action, VisitError>> + Unpin {
    let visit = AbortOnDropHandle::new(tokio::spawn(visit.in_current_span()));
    visit.map(|ended| ended.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic())))
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

fn api<K: Namespaced>(client: &Client, namespace: Option<&str>) -> Api<K> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
