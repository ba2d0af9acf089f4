//! A server in this process, with one model of each task and bounds that a test sets.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http::Method;
use millrace_answers::disk::DiskOptions;
use millrace_crds::inference_service::{Auth, Cache, InferenceServiceSpec};
use millrace_inference_server::{
    http::app::HttpLimits,
    server::{Server, ServerConfig, ServerError},
};
use millrace_models::model::{BackendChoice, LoadOptions};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::client::{get, send};

/// Longest any test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three models: `embed`, `classify`, `entities`.
pub const SERVICE: &str = r#"
apiVersion: millrace.dev/v1alpha1
kind: InferenceService
metadata: {name: all-tasks}
spec:
  models:
  - {name: embed, task: Embedding, source: {uri: /models/embed}}
  - {name: classify, task: SequenceClassification, source: {uri: /models/classify}}
  - {name: entities, task: TokenClassification, source: {uri: /models/entities}}
"#;

/// The keys of a server that wants one.
pub const API_KEY: &str = "k3y-of-acme";
pub const OTHER_API_KEY: &str = "k3y-of-zenith";

/// Everything a test can change.
pub struct Setup {
    pub service: &'static str,
    pub fake: &'static str,
    pub limits: HttpLimits,
    pub queue_items_max: u32,
    pub batch_items_max: u32,
    pub text_chars_max: usize,
    pub tokenize_deadline: Duration,
    pub drain_delay: Duration,
    pub cache: Cache,
    pub cache_redis_url: Option<String>,
    pub cache_disk: Option<DiskOptions>,
    pub auth: Option<Auth>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            service: SERVICE,
            fake: MISBEHAVING,
            limits: HttpLimits::default(),
            queue_items_max: 4096,
            batch_items_max: 64,
            text_chars_max: 100_000,
            tokenize_deadline: Duration::from_secs(5),
            drain_delay: Duration::ZERO,
            cache: Cache::default(),
            cache_redis_url: None,
            cache_disk: None,
            auth: None,
        }
    }
}

/// A running server.
pub struct Scene {
    folder: TempDir,
    shutdown: Option<oneshot::Sender<()>>,
    pub running: JoinHandle<Result<(), ServerError>>,
    pub address: std::net::SocketAddr,
}

impl Setup {
    /// Starts the server and waits until it is ready.
    pub async fn start(self) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let service = folder.path().join("service.yaml");
        std::fs::write(&service, self.service).unwrap();
        let mut spec: InferenceServiceSpec =
            millrace_inference_server::service_file::read(&service).unwrap();
        spec.batching.max_batch_size = self.batch_items_max;
        spec.batching.queue.max_items = self.queue_items_max;
        spec.cache = self.cache;
        spec.auth = self.auth;
        let keys = folder.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        for (name, key) in [("acme", API_KEY), ("zenith", OTHER_API_KEY)] {
            std::fs::write(keys.join(name), format!("{key}\n")).unwrap();
        }
        let config = ServerConfig {
            spec,
            load: LoadOptions {
                model_cache: PathBuf::new(),
                threads: 1,
                allow_torchscript: false,
                text_chars_max: self.text_chars_max,
                tokenize_deadline: self.tokenize_deadline,
                backend: BackendChoice::Fake(self.fake.parse().unwrap()),
            },
            uds: Some(folder.path().join("socket")),
            listen: Some("127.0.0.1:0".into()),
            tokenize_threads: 2,
            api_keys: Some(keys),
            cache_redis_url: self.cache_redis_url,
            cache_disk: self.cache_disk,
            namespace: "default".into(),
            limits: self.limits,
            drain_delay: self.drain_delay,
            drain_deadline: PATIENCE,
        };
        let server = Server::bind(config).await.unwrap();
        let address = server.address().unwrap();
        let (shutdown, shut_down) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = shut_down.await;
        }));
        let scene = Scene {
            folder,
            shutdown: Some(shutdown),
            running,
            address,
        };
        until_ready(&scene.socket()).await;
        scene
    }
}

impl Scene {
    /// A server with the defaults.
    pub async fn start() -> Self {
        Setup::default().start().await
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// What SIGTERM does.
    pub fn begin_shutdown(&mut self) {
        let _ = self
            .shutdown
            .take()
            .expect("a server is shut down once")
            .send(());
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = get(&self.socket(), "/metrics").await.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("the metric is there").parse().unwrap()
    }

    pub async fn assert_alive(&self) {
        assert_eq!(get(&self.socket(), "/health").await.status, 200);
    }
}

pub async fn until_ready(socket: &Path) {
    // A socket is there a moment before anybody listens at it.
    until("ready", async || {
        let ready = send(socket, Method::GET, "/ready", "").await;
        ready.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

/// Waits until `holds`.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < give_up, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Words on which the stand-in panics, fails and answers NaN.
pub const MISBEHAVING: &str = "panic-on=[panic],fail-on=[fail],nan-on=[nan]";

/// A stand-in that takes 20 ms for each one-word text.
pub const SLOW: &str = "micros-per-token=20000";

/// A stand-in that takes longer for a text than any deadline in these tests.
pub const STUCK: &str = "micros-per-token=500000";

/// A stand-in whose memory holds 20 tokens.
pub const OOM_ABOVE_20_TOKENS: &str = "oom-above-tokens=20";
