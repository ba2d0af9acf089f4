//! The steps: each opens what its arguments name, calls the library and says how it ended.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use millrace_crds::SecretKeyRef;
use millrace_crds::manifest::{self, Manifest};
use millrace_edge::Token;
use millrace_leases::limits::{Limiter, RedisLimiter};
use millrace_leases::{
    JobRegistry, LeaseError, LeaseOptions, LeaseStore, RedisConnection, RedisLeaseStore,
    RedisOptions,
};
use millrace_protocol::report::Report;
use millrace_telemetry::{chain, on_signal};
use millrace_worker::commits;
use millrace_worker::endpoints;
use millrace_worker::finish::Finish;
use millrace_worker::job::CheckedJob;
use millrace_worker::metrics::Metrics;
use millrace_worker::notify::Means;
use millrace_worker::plan::forecast;
use millrace_worker::postgres::Sink;
use millrace_worker::reader::{self, ReaderOptions};
use millrace_worker::run::{self, WorkOptions};
use millrace_worker::secrets::Secrets;
use millrace_worker::serve::{self, Door, ServeOptions};
use millrace_worker::store::{LinkLocal, Stores};
use millrace_worker::work::call::{Caches, CachesOptions, Gates, minute_from_env};
use millrace_worker::work::client::ServerAddress;
use millrace_worker::work::client::remote::Access;
use millrace_worker::work::progress::Progress;
use millrace_worker::{manifests, models, notify, output};

use crate::{Cache, Job, Leases, Models, Notify, Read, Serve, Server};

/// What the steps of one run start with.
struct Opened {
    stores: Stores,
    job: CheckedJob,
    secrets: Secrets,
    leases: Arc<dyn LeaseStore>,
    lease_ttl: Duration,
}

fn open(job: Job) -> anyhow::Result<Opened> {
    let Job {
        manifest,
        credentials,
        secrets,
        leases: Leases {
            redis_url,
            lease_ttl_ms,
        },
    } = job;
    let job = manifests::load(&manifest)?.job;
    let lease_ttl = Duration::from_millis(lease_ttl_ms);
    let options = LeaseOptions {
        lease_ttl,
        deliveries_max: job.deliveries_max,
    };
    let leases = RedisLeaseStore::new(&redis(redis_url), &job.run_key(), options)
        .context("the Redis of the leases cannot be used")?;
    Ok(Opened {
        stores: stores(credentials.as_deref())?,
        job,
        secrets: secrets.map_or(Secrets::Environment, Secrets::Folder),
        leases: Arc::new(leases),
        lease_ttl,
    })
}

fn stores(credentials: Option<&Path>) -> anyhow::Result<Stores> {
    let link_local = LinkLocal::from_env();
    match credentials {
        None => Ok(Stores::from_env(link_local)),
        Some(folder) => Stores::from_env_and_folder(folder, link_local)
            .with_context(|| format!("no credentials in {}", folder.display())),
    }
}

/// The Redis of the leases, whose user the operator makes again where it is lost.
fn redis(url: String) -> RedisOptions {
    RedisOptions {
        refusals_pass: true,
        ..RedisOptions::new(url)
    }
}

/// Plans the run and queues its open shards. A table that results cannot be loaded into and an endpoint that may
/// not be reached are found now.
pub async fn plan(job: Job) -> anyhow::Result<Report> {
    let Opened {
        stores,
        job,
        secrets,
        leases,
        lease_ttl: _,
    } = open(job)?;
    endpoints::check(&job, LinkLocal::from_env())?;
    Sink::open(&job, &secrets).await?;
    let prepared = run::prepare(&stores, &job).await?;
    commits::fill_anew(leases.as_ref(), &prepared.plan, &prepared.committed).await?;
    let (shards, committed) = (prepared.plan.shards.len(), prepared.committed.len());
    tracing::info!(shards, committed, "the run is planned");
    // A guess is a service, not a condition.
    let forecast = match forecast(&stores, &job, &prepared.plan, None).await {
        Ok(forecast) => forecast,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "what the calls will take is not guessed");
            None
        }
    };
    if let Some(forecast) = &forecast {
        tracing::info!("the whole job takes {forecast}");
        if let Some(warning) = forecast.warning() {
            tracing::warn!("{warning}");
        }
    }
    Ok(Report::Planned {
        shards: shards as u32,
        committed: committed as u32,
        forecast,
    })
}

/// What the callers of an API elsewhere share.
struct Shared<'a> {
    redis: RedisOptions,
    namespace: &'a str,
    service: &'a str,
    secrets: Secrets,
    cache: Cache,
    metrics: Metrics,
}

/// Where the server is, or how the API is asked.
fn address(server: Server, shared: Option<Shared>) -> anyhow::Result<ServerAddress> {
    let Server {
        socket,
        url,
        remote: _,
    } = server;
    let server = match (socket, url) {
        (Some(socket), _) => Some(ServerAddress::Socket(socket)),
        (None, url) => url.map(ServerAddress::Url),
    };
    let shared = match (shared, &server) {
        (None, Some(server)) => return Ok(server.clone()),
        (shared, _) => shared.context("--remote is for a service with spec.remote")?,
    };
    let Shared {
        redis,
        namespace,
        service,
        secrets,
        cache: Cache { cache_redis_url },
        metrics,
    } = shared;
    if let Some(url) = &cache_redis_url {
        // One that is away is done without.
        RedisConnection::new(&RedisOptions::new(url)).context(
            "the URL of the cache's Redis cannot be used: set --cache-redis-url to redis://host:port",
        )?;
    }
    let caches = CachesOptions {
        namespace: namespace.to_owned(),
        redis_url: cache_redis_url,
        disk: None,
        lookups: metrics.cache_lookups(),
    };
    let namespace = namespace.to_owned();
    let limiter = move |service: &str| -> Result<Arc<dyn Limiter>, LeaseError> {
        let limiter = RedisLimiter::new(&redis, &namespace, service, minute_from_env());
        Ok(Arc::new(limiter?))
    };
    let gates = Gates::new(limiter);
    // A Redis that cannot be used is found now, and not with the first job.
    gates
        .of(service)
        .context("the Redis of the limits cannot be used")?;
    let access = Access {
        secrets,
        gates: Arc::new(gates),
        caches: Arc::new(Caches::new(caches)),
        metrics,
        link_local: LinkLocal::from_env(),
    };
    Ok(match server {
        Some(server) => ServerAddress::Beside(Box::new(server), access),
        None => ServerAddress::Remote(access),
    })
}

/// Waits until the answers of APIs elsewhere are kept where others find them.
async fn flush(server: &ServerAddress) {
    if let Some(access) = server.access() {
        access.caches.flush().await;
    }
}

/// Works off the shards of one run.
pub async fn work(job: Job, server: Server, cache: Cache) -> anyhow::Result<()> {
    let redis = RedisOptions::new(&job.leases.redis_url);
    let Opened {
        stores,
        job,
        secrets: _,
        leases,
        lease_ttl,
    } = open(job)?;
    let prepared = run::resume(&stores, &job).await?;
    let metrics = Metrics::default();
    let limits = job.remotes().next().map(|remote| Shared {
        redis,
        namespace: &job.namespace,
        service: &remote.service,
        secrets: Secrets::Environment,
        cache,
        metrics: metrics.clone(),
    });
    let options = WorkOptions {
        server: address(server, limits)?,
        leases,
        lease_ttl,
        progress: Arc::new(Progress::counted_in(metrics)),
        stop: on_signal()?,
    };
    let ended = run::work(&stores, &job, &prepared, &options).await?;
    flush(&options.server).await;
    let rows = options.progress.snapshot().answered.rows.total();
    tracing::info!(?ended, rows, "the worker is done");
    Ok(())
}

/// Verifies and finishes the run, or queues what is missing. Whom the job names is told of its end.
pub async fn finish(
    job: Job,
    give_up: Option<String>,
    give_up_reason: Option<String>,
) -> anyhow::Result<Report> {
    let Opened {
        stores,
        job,
        secrets,
        leases,
        lease_ttl: _,
    } = open(job)?;
    let prepared = run::resume(&stores, &job).await?;
    let sink = Sink::open(&job, &secrets).await?;
    let give_up = give_up.as_deref();
    match run::conclude(&job, &prepared, leases.as_ref(), give_up, sink.as_ref()).await? {
        Finish::Finished(manifest) => {
            let failed_shards = manifest.failed_shards.len();
            tracing::info!(totals = ?manifest.totals, failed_shards, "the run is finished");
            let report = Report::Finished {
                complete: manifest.complete,
                shards: prepared.plan.shards.len() as u32,
                failed_shards: failed_shards as u32,
                failed_indexes: manifest.failed_indexes(),
                tally: manifest.totals,
                routes: manifest.routes.clone(),
                sample_errors: output::samples(&prepared.output, &manifest.parts).await?,
                warning: None,
            };
            let event = notify::finished(&job, &manifest, give_up_reason.as_deref());
            let means = Means {
                secrets,
                link_local: LinkLocal::from_env(),
            };
            Ok(report.with_warning(means.tell(&job, &event).await))
        }
        Finish::Incomplete(missing) => {
            let committed = commits::list(&prepared.output, prepared.plan.run).await?;
            commits::fill(leases.as_ref(), &prepared.plan, &committed).await?;
            commits::queue(leases.as_ref(), &missing).await?;
            let shards = missing.len() as u32;
            tracing::warn!(shards, "the run is incomplete: shards are queued");
            Ok(Report::Incomplete { shards })
        }
    }
}

/// Tells a receiver how a job ended that was not finished.
pub async fn notify(notify: Notify) -> anyhow::Result<()> {
    let Notify {
        url,
        event,
        secret,
        key,
        secrets,
    } = notify;
    let event = serde_json::from_str(&event).context("--event is no event")?;
    let means = Means {
        secrets: Secrets::Folder(secrets),
        link_local: LinkLocal::from_env(),
    };
    let secret = secret.map(|name| SecretKeyRef { name, key });
    Ok(means.deliver(&url, secret.as_ref(), &event).await?)
}

/// Attends to the jobs of a service until the pod is drained or told to stop.
pub async fn serve(serve: Serve) -> anyhow::Result<()> {
    let Serve {
        namespace,
        service,
        pod,
        secrets,
        listen,
        server,
        cache,
        leases: Leases {
            redis_url,
            lease_ttl_ms,
        },
    } = serve;
    let redis = redis(redis_url);
    let terminated = on_signal()?;
    let door = Door::default();
    let listener = tokio::net::TcpListener::bind(&listen)
        .await
        .with_context(|| format!("{listen} cannot be listened on"))?;
    let answering = tokio::spawn(serve::listen(listener, door.clone()));
    let stop = door.drain.clone();
    let on_termination = (terminated.clone(), stop.clone());
    tokio::spawn(async move {
        on_termination.0.cancelled().await;
        on_termination.1.cancel();
    });
    let registry = JobRegistry::new(&redis, &namespace, &service)
        .context("the Redis of the leases cannot be used")?;
    let limits = Shared {
        redis: redis.clone(),
        namespace: &namespace,
        service: &service,
        secrets: Secrets::Folder(secrets.clone()),
        cache,
        metrics: door.metrics.clone(),
    };
    let options = ServeOptions {
        registry,
        redis,
        lease_ttl: Duration::from_millis(lease_ttl_ms),
        server: address(server, Some(limits))?,
        pod,
        secrets,
        metrics: door.metrics.clone(),
        stop,
    };
    serve::serve(&options).await;
    flush(&options.server).await;
    door.drained.cancel();
    tracing::info!("nothing is leased any more");
    // A drained worker that ended by itself would be started again and claim again.
    tokio::select! {
        () = terminated.cancelled() => Ok(()),
        ended = answering => Ok(ended??),
    }
}

/// Serves the results of a job until told to stop.
pub async fn read(read: Read) -> anyhow::Result<()> {
    let Read {
        output,
        job,
        token_file,
        credentials,
        listen,
    } = read;
    let stop = on_signal()?;
    let token = Token::read(&token_file)
        .with_context(|| format!("--token-file: no token in {}", token_file.display()))?;
    let options = ReaderOptions {
        output: stores(credentials.as_deref())?.open(&output)?,
        job,
        token: Some(token),
    };
    let listener = tokio::net::TcpListener::bind(&listen)
        .await
        .with_context(|| format!("{listen} cannot be listened on"))?;
    tracing::info!(address = %listener.local_addr()?, output, "results can be read");
    reader::listen(listener, options, stop).await;
    Ok(())
}

/// Fetches the models of a service.
pub async fn models(models: Models) -> anyhow::Result<()> {
    let Models {
        manifest,
        to,
        secrets,
    } = models;
    for manifest in manifest::read_path(&manifest)? {
        let Manifest::InferenceService(service) = manifest else {
            continue;
        };
        for (index, model) in service.spec.models.iter().enumerate() {
            let credentials = service.spec.credentials_of(model);
            let folder = credentials.map(|secret| secrets.join(&secret.name));
            models::fetch(&stores(folder.as_deref())?, index, model, &to).await?;
        }
    }
    Ok(())
}

/// Asks the Redis of the leases something that changes nothing.
pub async fn check(leases: Leases) -> anyhow::Result<()> {
    let Leases {
        redis_url,
        lease_ttl_ms: _,
    } = leases;
    let registry = JobRegistry::new(&RedisOptions::new(redis_url), "default", "default")?;
    registry.list().await?;
    println!("the Redis of the leases answers");
    Ok(())
}
