//! What the endpoints share: bounds, metrics, and the inference once it is loaded.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_crds::inference_service::Task;
use millrace_models::model::Model;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::{http::error::ApiError, inference::Inference, metrics::Metrics};

/// Bounds of requests.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Most texts in one online request.
    pub client_batch_items_max: usize,
    /// Most texts in one request to `/v1/rows`.
    pub rows_batch_items_max: usize,
    /// Largest body of an online request.
    pub payload_bytes_max: usize,
    /// Largest body of a request to `/v1/rows`.
    pub rows_payload_bytes_max: usize,
    /// Most online requests at a time.
    pub concurrent_requests_max: usize,
    /// Most requests to `/v1/rows` at a time.
    pub concurrent_rows_requests_max: usize,
    /// Most connections at a time; further ones wait to be accepted.
    pub connections_max: usize,
    /// Time for the headers of a request, and the longest a connection stays idle.
    pub header_deadline: Duration,
    /// Time for the body of a request.
    pub body_deadline: Duration,
    /// Longest that a client may leave what is written to it unread.
    pub write_deadline: Duration,
    /// Time for the answer of an online request.
    pub request_deadline: Duration,
    /// Time for the answer of a request to `/v1/rows`.
    pub rows_deadline: Duration,
    /// Whether online texts above a model's length are cut where the request does not say.
    pub auto_truncate: bool,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            client_batch_items_max: 32,
            rows_batch_items_max: 4096,
            payload_bytes_max: 2_000_000,
            rows_payload_bytes_max: 64 << 20,
            concurrent_requests_max: 512,
            concurrent_rows_requests_max: 16,
            connections_max: 1024,
            header_deadline: Duration::from_secs(30),
            body_deadline: Duration::from_secs(30),
            write_deadline: Duration::from_secs(30),
            request_deadline: Duration::from_secs(60),
            rows_deadline: Duration::from_secs(240),
            auto_truncate: false,
        }
    }
}

/// The state behind the router.
pub struct App {
    /// Bounds of requests.
    pub limits: HttpLimits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Absent while models are loading and after the drain.
    inference: RwLock<Option<Arc<Inference>>>,
    draining: AtomicBool,
    online_slots: Arc<Semaphore>,
    rows_slots: Semaphore,
}

impl App {
    /// An app whose models are not loaded yet.
    pub fn new(limits: HttpLimits, metrics: Arc<Metrics>) -> Self {
        Self {
            online_slots: Arc::new(Semaphore::new(limits.concurrent_requests_max)),
            rows_slots: Semaphore::new(limits.concurrent_rows_requests_max),
            limits,
            metrics,
            inference: RwLock::new(None),
            draining: AtomicBool::new(false),
        }
    }

    /// From now on requests are answered and, unless draining, `/ready` says yes.
    pub fn set_loaded(&self, inference: Inference) {
        self.replace_inference(Some(Arc::new(inference)));
    }

    /// From now on `/ready` says no; requests are still answered.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// From now on no request is answered; the queue ends when the last one in flight is.
    pub fn unload(&self) {
        self.replace_inference(None);
    }

    /// Whether new requests are welcome.
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.inference().is_ok()
    }

    /// Whether the server is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The inference, if it is loaded.
    pub(crate) fn inference(&self) -> Result<Arc<Inference>, ApiError> {
        let inference = self
            .inference
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        inference.clone().ok_or(ApiError::NotReady)
    }

    fn replace_inference(&self, inference: Option<Arc<Inference>>) {
        *self
            .inference
            .write()
            .unwrap_or_else(PoisonError::into_inner) = inference;
    }

    /// The right to be answered an online request. It outlives the handler where answers stream.
    pub(crate) fn online_slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.online_slots
            .clone()
            .try_acquire_owned()
            .map_err(|_| ApiError::TooManyRequests)
    }

    /// The right to hold a body for `/v1/rows`.
    pub(crate) fn rows_slot(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.rows_slots
            .try_acquire()
            .map_err(|_| ApiError::TooManyRequests)
    }
}

/// The model a request means: the one it names, else the first whose task fits.
pub(crate) fn pick_model(
    models: &[Model],
    name: Option<&str>,
    tasks: &'static [Task],
) -> Result<usize, ApiError> {
    let fits = |model: &Model| tasks.contains(&model.task());
    match name {
        None => models
            .iter()
            .position(fits)
            .ok_or(ApiError::NoModelForTask { tasks }),
        Some(name) => {
            let index = find_model(models, name)?;
            let task = models[index].task();
            if fits(&models[index]) {
                Ok(index)
            } else {
                Err(ApiError::WrongTask {
                    model: name.to_owned(),
                    task,
                    tasks,
                })
            }
        }
    }
}

/// The models of a worker's request, each of which it may name once.
pub(crate) fn find_models(models: &[Model], names: &[String]) -> Result<Vec<usize>, ApiError> {
    if names.len() > models.len() {
        return Err(ApiError::Invalid(
            "the request names a model more than once".into(),
        ));
    }
    names.iter().map(|name| find_model(models, name)).collect()
}

/// The model of that name.
pub(crate) fn find_model(models: &[Model], name: &str) -> Result<usize, ApiError> {
    let index = models.iter().position(|model| model.name() == name);
    index.ok_or_else(|| ApiError::UnknownModel {
        name: name.chars().take(100).collect(),
        known: models
            .iter()
            .map(Model::name)
            .collect::<Vec<_>>()
            .join(", "),
    })
}
