//! Puts the server together and takes it apart again.
//!
//! It listens at once, so that `/health` answers while models load; `/ready` says yes only after
//! every model has computed once. A drain goes the way of the data: unready, no new connections,
//! requests in flight, queue, engine threads.

use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use millrace_answers::{
    Cache, CacheOptions,
    disk::{Disk, DiskError, DiskOptions},
};
use millrace_crds::inference_service::{Auth, Batching, Cache as CacheSpec, InferenceServiceSpec};
use millrace_edge::{Listener, ServeOptions, serve};
use millrace_leases::LeaseError;
use millrace_models::{
    backend::{BackendError, PackedBatch},
    model::{LoadError, LoadOptions, Model},
};
use millrace_protocol::row::RowError;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    batcher::Limits,
    engine::Engine,
    http::{
        app::{App, HttpLimits},
        keys::{ApiKeys, KeysError},
        router,
    },
    inference::Inference,
    metrics::Metrics,
    queue,
};

/// What to serve and how. Not printable, since the URL of a Redis may hold a password.
#[derive(Clone)]
pub struct ServerConfig {
    /// The models and how they are batched.
    pub spec: InferenceServiceSpec,
    /// How models are loaded.
    pub load: LoadOptions,
    /// Unix socket to listen on.
    pub uds: Option<PathBuf>,
    /// TCP address to listen on.
    pub listen: Option<String>,
    /// Texts tokenised at a time, for each priority.
    pub tokenize_threads: usize,
    /// Bounds of requests.
    pub limits: HttpLimits,
    /// Redis that shares kept answers with other servers, where the service keeps any.
    pub cache_redis_url: Option<String>,
    /// Folder that keeps answers over restarts, where the service keeps any.
    pub cache_disk: Option<DiskOptions>,
    /// Namespace of the service: namespaces share no answers.
    pub namespace: String,
    /// Folder with the API keys of those who may ask over TCP, where the service wants keys.
    pub api_keys: Option<PathBuf>,
    /// Time in which a draining server is unready but still serves.
    pub drain_delay: Duration,
    /// Time for the requests in flight after that.
    pub drain_deadline: Duration,
}

/// Why a server ended or never began.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Neither a socket nor an address was given.
    #[error("nowhere to listen: give --uds, --listen or both")]
    NoListener,
    /// An address or socket cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A model cannot be served.
    #[error("spec.models[{index}]: model {model:?} cannot be loaded")]
    Load {
        /// Its index in the service.
        index: usize,
        /// Name of the model.
        model: String,
        /// Why.
        source: LoadError,
    },
    /// A model was loaded but cannot compute.
    #[error("model {model:?} failed on a first text")]
    Warmup {
        /// Name of the model.
        model: String,
        /// Why.
        source: WarmupError,
    },
    /// The service wants keys, and there are none to compare with.
    #[error("the service wants API keys (spec.auth): give --api-keys FOLDER, or no --listen")]
    NoApiKeys,
    /// The keys cannot be read.
    #[error("the API keys cannot be read")]
    ApiKeys(#[from] KeysError),
    /// The Redis of the cache is no Redis.
    #[error(
        "the URL of the cache's Redis cannot be used: set --cache-redis-url to redis://host:port"
    )]
    Cache(#[source] LeaseError),
    /// The folder of the cache is none.
    #[error("the folder of the cache cannot be used: set --cache-folder to another one")]
    CacheFolder(#[from] DiskError),
    /// Threads cannot be started.
    #[error("the engine threads cannot be started")]
    Threads(#[source] std::io::Error),
    /// A part that should run for ever ended.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// Requests were still in flight at the drain deadline.
    #[error("requests were still in flight {0:?} after the drain began")]
    DrainDeadline(Duration),
}

/// Why a model failed on a first text.
#[derive(Debug, thiserror::Error)]
pub enum WarmupError {
    /// It could not compute.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The text could not be encoded, or the numbers mean nothing.
    #[error(transparent)]
    Row(#[from] RowError),
    /// It returned no output.
    #[error("the model returned nothing")]
    Nothing,
}

impl WarmupError {
    fn is_permanent(&self) -> bool {
        !matches!(
            self,
            WarmupError::Backend(BackendError::OutOfMemory { .. } | BackendError::DeviceLost(_))
        )
    }
}

impl ServerError {
    /// Whether starting the server again with the same service cannot help. What memory, disks and
    /// devices say may be another thing the next time.
    pub fn is_permanent(&self) -> bool {
        match self {
            ServerError::NoListener
            | ServerError::NoApiKeys
            | ServerError::Cache(_)
            | ServerError::CacheFolder(_) => true,
            ServerError::Load { source, .. } => source.is_permanent(),
            ServerError::Warmup { source, .. } => source.is_permanent(),
            ServerError::Listen { .. }
            // A Secret may be mended while the pod waits.
            | ServerError::ApiKeys(_)
            | ServerError::Threads(_)
            | ServerError::Ended(_)
            | ServerError::DrainDeadline(_) => false,
        }
    }
}

/// A server that listens; models may still be loading.
pub struct Server {
    app: Arc<App>,
    config: ServerConfig,
    stop: watch::Sender<bool>,
    /// Each says whether its connections ended in time.
    listeners: JoinSet<bool>,
    address: Option<std::net::SocketAddr>,
    /// Looks for API keys that were added or withdrawn, as long as the server lives.
    _keys: Option<AbortOnDropHandle<()>>,
}

impl Server {
    /// Starts to listen.
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let app = Arc::new(App::new(config.limits.clone(), Arc::new(Metrics::new())));
        let keys = api_keys(&config)?;
        let mut bound = Vec::new();
        if let Some(path) = &config.uds {
            let listener = Listener::unix(path).await;
            let address = path.display().to_string();
            bound.push(listener.map_err(|source| ServerError::Listen { address, source })?);
        }
        if let Some(address) = &config.listen {
            let listener = Listener::tcp(address).await;
            let address = address.clone();
            bound.push(listener.map_err(|source| ServerError::Listen { address, source })?);
        }
        if bound.is_empty() {
            return Err(ServerError::NoListener);
        }
        let address = bound.iter().find_map(Listener::address);
        let (stop, stopped) = watch::channel(false);
        let mut listeners = JoinSet::new();
        for listener in bound {
            // Whoever reaches the socket is in the pod already.
            let keys = keys
                .clone()
                .filter(|_| matches!(listener, Listener::Tcp(_)));
            let router = router(app.clone(), keys);
            let options = ServeOptions {
                connections_max: config.limits.connections_max,
                header_deadline: config.limits.header_deadline,
                write_deadline: config.limits.write_deadline,
                drain_deadline: config.drain_deadline,
            };
            let mut stopped = stopped.clone();
            let stopped = async move {
                // A dropped sender means that nobody is left to serve for.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            listeners.spawn(serve(listener, router, options, stopped));
        }
        Ok(Self {
            app,
            config,
            stop,
            listeners,
            address,
            _keys: keys.map(|keys| AbortOnDropHandle::new(tokio::spawn(keys.keep_reading()))),
        })
    }

    /// The TCP address, if there is one.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.address
    }

    /// Loads the models, serves until `shutdown` completes, then drains.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        tokio::pin!(shutdown);
        let loading = load(self.config.spec.clone(), self.config.load.clone());
        let models = tokio::select! {
            models = loading => models?,
            () = &mut shutdown => return self.drain(None).await,
        };
        let mut working = self.start_working(models).await?;
        tracing::info!(
            uds = ?self.config.uds, address = ?self.address, "ready"
        );
        let outcome = tokio::select! {
            () = &mut shutdown => Ok(()),
            _ = &mut working.queue => Err(ServerError::Ended("the queue")),
            _ = self.listeners.join_next() => Err(ServerError::Ended("a listener")),
        };
        match outcome {
            Ok(()) => self.drain(Some(working)).await,
            Err(error) => {
                // Who is still connected learns that its texts failed.
                self.config.drain_delay = Duration::ZERO;
                self.drain(None).await.and(Err(error))
            }
        }
    }

    async fn start_working(&self, models: Vec<Model>) -> Result<Working, ServerError> {
        let models = Arc::new(models);
        let metrics = self.app.metrics.clone();
        let cache = self.cache(&metrics).await?;
        let limits = batch_limits(&models, &self.config.spec.batching);
        let engines = models
            .iter()
            .map(|model| model.backend().appetite().callers)
            .max();
        let items_max = self.config.spec.batching.queue.max_items as usize;
        let (handle, seats, queue) = queue::start(
            limits,
            items_max,
            engines.unwrap_or(1).max(1),
            metrics.clone(),
        );
        let engine = Engine::start(models.clone(), seats, metrics.clone());
        let engine = engine.map_err(ServerError::Threads)?;
        let tokenize_threads = self.config.tokenize_threads.max(1);
        self.app.set_loaded(Inference::new(
            models,
            handle,
            tokenize_threads,
            cache.clone(),
            metrics,
        ));
        Ok(Working {
            queue,
            engine,
            cache,
        })
    }

    async fn cache(&self, metrics: &Arc<Metrics>) -> Result<Option<Arc<Cache>>, ServerError> {
        let CacheSpec {
            enabled,
            ttl_seconds,
            max_bytes,
        } = self.config.spec.cache;
        if !enabled {
            return Ok(None);
        }
        let ttl = Duration::from_secs(ttl_seconds.into());
        let disk = match &self.config.cache_disk {
            Some(disk) => {
                let lookups = metrics.cache_lookups.clone();
                Disk::open(disk.clone(), ttl, lookups).await?.map(Arc::new)
            }
            None => None,
        };
        let options = CacheOptions {
            ttl,
            bytes_max: max_bytes,
            redis_url: self.config.cache_redis_url.clone(),
            disk,
            namespace: self.config.namespace.clone(),
        };
        let cache = Cache::new(options, metrics.cache_lookups.clone());
        cache.map(Some).map_err(ServerError::Cache)
    }

    async fn drain(mut self, working: Option<Working>) -> Result<(), ServerError> {
        tracing::info!("draining");
        self.app.start_draining();
        tokio::time::sleep(self.config.drain_delay).await;
        let _ = self.stop.send(true);
        let mut in_time = true;
        while let Some(joined) = self.listeners.join_next().await {
            in_time &= joined.unwrap_or(false);
        }
        self.app.unload();
        if !in_time {
            return Err(ServerError::DrainDeadline(self.config.drain_deadline));
        }
        if let Some(Working {
            queue,
            engine,
            cache,
        }) = working
        {
            if let Some(cache) = cache {
                cache.flush().await;
            }
            queue.await.map_err(|_| ServerError::Ended("the queue"))?;
            let joined = tokio::task::spawn_blocking(|| engine.join()).await;
            joined.map_err(|_| ServerError::Ended("the engine"))?;
        }
        tracing::info!("drained");
        Ok(())
    }
}

/// The keys that requests over TCP must bring. A service that wants keys is never open without.
fn api_keys(config: &ServerConfig) -> Result<Option<Arc<ApiKeys>>, ServerError> {
    let (Some(auth), Some(_)) = (&config.spec.auth, &config.listen) else {
        return Ok(None);
    };
    let Auth {
        secret_ref: _,
        requests_per_minute,
    } = auth;
    let folder = config.api_keys.as_ref().ok_or(ServerError::NoApiKeys)?;
    let requests_per_minute = requests_per_minute.and_then(NonZeroU32::new);
    Ok(Some(Arc::new(ApiKeys::open(folder, requests_per_minute)?)))
}

/// What runs once models are loaded.
struct Working {
    queue: JoinHandle<()>,
    engine: Engine,
    cache: Option<Arc<Cache>>,
}

fn batch_limits(models: &[Model], batching: &Batching) -> Limits {
    let Batching {
        max_batch_tokens,
        max_batch_size,
        max_wait,
        queue: _,
    } = batching;
    let tokens_max = |model: &Model| match max_batch_tokens {
        Some(tokens) => *tokens as usize,
        None => model.backend().appetite().batch_tokens,
    };
    Limits {
        batch_tokens_max: models.iter().map(tokens_max).collect(),
        batch_items_max: (*max_batch_size as usize).max(1),
        wait_max: (*max_wait).into(),
    }
}

/// Loads all models and lets each compute once, on a thread that may block.
async fn load(spec: InferenceServiceSpec, options: LoadOptions) -> Result<Vec<Model>, ServerError> {
    let loading = move || {
        let load_one = |(index, spec)| -> Result<Model, ServerError> {
            let spec: &millrace_crds::inference_service::ModelSpec = spec;
            let name = spec.name.clone();
            let model = Model::load(spec, &options).map_err(|source| ServerError::Load {
                index,
                model: name.clone(),
                source,
            })?;
            warm_up(&model).map_err(|source| ServerError::Warmup {
                model: name,
                source,
            })?;
            tracing::info!(
                model = model.name(),
                digest = model.digest(),
                dtype = model.dtype(),
                device = model.device(),
                max_length = model.max_length(),
                "loaded"
            );
            Ok(model)
        };
        spec.models.iter().enumerate().map(load_one).collect()
    };
    let loaded = tokio::task::spawn_blocking(loading).await;
    loaded.map_err(|_| ServerError::Ended("the loading of the models"))?
}

fn warm_up(model: &Model) -> Result<(), WarmupError> {
    let encoding = model.encode("warm up")?;
    let batch = PackedBatch::pack([encoding.token_ids.as_slice()]);
    let outputs = model.backend().forward(&batch, &[model.head()])?;
    let output = outputs.first().ok_or(WarmupError::Nothing)?;
    model.predict("warm up", &encoding, &output.values)?;
    Ok(())
}
