//! The command line. Every flag has an environment variable.

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use millrace_models::folder::default_model_cache;

use crate::http::app::HttpLimits;

/// Serves the models of an InferenceService over HTTP and a Unix socket.
#[derive(Debug, Clone, Parser)]
#[command(name = "millrace-inference-server", version)]
pub struct Options {
    /// InferenceService, YAML or JSON, whose models are served.
    #[arg(
        long,
        env = "MILLRACE_SERVICE",
        required_unless_present = "print_digest"
    )]
    pub service: Option<PathBuf>,

    /// Unix socket to listen on.
    #[arg(long, env = "MILLRACE_UDS")]
    pub uds: Option<PathBuf>,

    /// TCP address to listen on, host:port; port 0 picks a free one.
    #[arg(long, env = "MILLRACE_LISTEN")]
    pub listen: Option<String>,

    /// Threads that compute [default: one per core].
    #[arg(long, env = "MILLRACE_THREADS")]
    pub threads: Option<usize>,

    /// Texts tokenised at a time, for each priority [default: as --threads].
    #[arg(long, env = "MILLRACE_TOKENIZE_THREADS")]
    pub tokenize_threads: Option<usize>,

    /// Folder in which hf://owner/name is looked up [default: millrace/models in
    /// $XDG_CACHE_HOME or ~/.cache].
    #[arg(long, env = "MILLRACE_MODEL_CACHE")]
    pub model_cache: Option<PathBuf>,

    /// Load TorchScript modules, which can run any code.
    #[arg(long, env = "MILLRACE_ALLOW_TORCHSCRIPT")]
    pub allow_torchscript: bool,

    /// Redis that shares kept answers with other servers, where spec.cache is enabled.
    #[arg(
        long,
        env = "MILLRACE_CACHE_REDIS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub cache_redis_url: Option<String>,

    /// Folder of this server alone in which it keeps answers over restarts, where spec.cache is enabled.
    #[arg(long, env = "MILLRACE_CACHE_FOLDER", value_name = "FOLDER")]
    pub cache_folder: Option<PathBuf>,

    /// Most bytes in that folder; what was used least lately goes first.
    #[arg(
        long,
        env = "MILLRACE_CACHE_FOLDER_MAX_BYTES",
        value_name = "BYTES",
        default_value_t = 1 << 30
    )]
    pub cache_folder_max_bytes: u64,

    /// Folder with one file for each API key, named like its client, where the service has
    /// spec.auth. Read again every few seconds.
    #[arg(long, env = "MILLRACE_API_KEYS", value_name = "FOLDER")]
    pub api_keys: Option<PathBuf>,

    /// Namespace of the service: namespaces share no answers.
    #[arg(long, env = "MILLRACE_NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Answer with a deterministic stand-in for tests instead of the models' weights. Options are
    /// key=value, separated by commas.
    #[arg(long, env = "MILLRACE_FAKE_BACKEND", value_name = "OPTIONS", num_args = 0..=1,
          default_missing_value = "")]
    pub fake_backend: Option<String>,

    /// Run the server as a child and start it again within a second when it dies.
    #[arg(long, env = "MILLRACE_SUPERVISE")]
    pub supervise: bool,

    /// Print the digest of a model folder, as a service's source.digest takes it, and end.
    #[arg(long, value_name = "FOLDER", conflicts_with = "supervise")]
    pub print_digest: Option<PathBuf>,

    /// Bounds of requests.
    #[command(flatten)]
    pub limits: LimitOptions,
}

/// Bounds of requests, as flags.
#[derive(Debug, Clone, Parser)]
pub struct LimitOptions {
    /// Most texts in one online request.
    #[arg(long, env = "MILLRACE_MAX_CLIENT_BATCH_SIZE", default_value_t = 32)]
    pub max_client_batch_size: usize,

    /// Most texts in one request to /v1/rows.
    #[arg(long, env = "MILLRACE_MAX_ROWS_BATCH_SIZE", default_value_t = 4096)]
    pub max_rows_batch_size: usize,

    /// Largest body of an online request in bytes.
    #[arg(
        long,
        env = "MILLRACE_PAYLOAD_LIMIT_BYTES",
        default_value_t = 2_000_000
    )]
    pub payload_limit_bytes: usize,

    /// Largest body of a request to /v1/rows in bytes.
    #[arg(long, env = "MILLRACE_ROWS_PAYLOAD_LIMIT_BYTES", default_value_t = 64 << 20)]
    pub rows_payload_limit_bytes: usize,

    /// Longest text in characters; longer ones are refused before they are tokenised.
    #[arg(long, env = "MILLRACE_MAX_TEXT_CHARS", default_value_t = 262_144)]
    pub max_text_chars: usize,

    /// Most online requests at a time.
    #[arg(long, env = "MILLRACE_MAX_CONCURRENT_REQUESTS", default_value_t = 512)]
    pub max_concurrent_requests: usize,

    /// Most requests to /v1/rows at a time.
    #[arg(
        long,
        env = "MILLRACE_MAX_CONCURRENT_ROWS_REQUESTS",
        default_value_t = 16
    )]
    pub max_concurrent_rows_requests: usize,

    /// Most connections at a time; further ones wait.
    #[arg(long, env = "MILLRACE_MAX_CONNECTIONS", default_value_t = 1024)]
    pub max_connections: usize,

    /// Cut texts above a model's length where an online request does not say.
    #[arg(long, env = "MILLRACE_AUTO_TRUNCATE")]
    pub auto_truncate: bool,

    /// Longest that tokenising one text may take.
    #[arg(long, env = "MILLRACE_TOKENIZE_DEADLINE_MS", default_value_t = 5_000)]
    pub tokenize_deadline_ms: u64,

    /// Time for the headers of a request, and the longest a connection stays idle.
    #[arg(long, env = "MILLRACE_HEADER_DEADLINE_MS", default_value_t = 30_000)]
    pub header_deadline_ms: u64,

    /// Time for the body of a request.
    #[arg(long, env = "MILLRACE_BODY_DEADLINE_MS", default_value_t = 30_000)]
    pub body_deadline_ms: u64,

    /// Longest that a client may leave what is written to it unread before its connection is closed.
    #[arg(long, env = "MILLRACE_WRITE_DEADLINE_MS", default_value_t = 30_000)]
    pub write_deadline_ms: u64,

    /// Time for the answer of an online request.
    #[arg(long, env = "MILLRACE_REQUEST_DEADLINE_MS", default_value_t = 60_000)]
    pub request_deadline_ms: u64,

    /// Time for the answer of a request to /v1/rows; below the worker's own patience, so that it
    /// learns which texts were too slow.
    #[arg(long, env = "MILLRACE_ROWS_DEADLINE_MS", default_value_t = 240_000)]
    pub rows_deadline_ms: u64,

    /// After SIGTERM, time in which /ready says no but new requests are still served, so that
    /// load balancers can turn away first.
    #[arg(long, env = "MILLRACE_DRAIN_DELAY_MS", default_value_t = 0)]
    pub drain_delay_ms: u64,

    /// After the drain delay, time for the requests in flight.
    #[arg(long, env = "MILLRACE_DRAIN_DEADLINE_MS", default_value_t = 25_000)]
    pub drain_deadline_ms: u64,
}

impl LimitOptions {
    /// The bounds that the HTTP edge keeps.
    pub fn http(&self) -> HttpLimits {
        HttpLimits {
            client_batch_items_max: self.max_client_batch_size,
            rows_batch_items_max: self.max_rows_batch_size,
            payload_bytes_max: self.payload_limit_bytes,
            rows_payload_bytes_max: self.rows_payload_limit_bytes,
            concurrent_requests_max: self.max_concurrent_requests,
            concurrent_rows_requests_max: self.max_concurrent_rows_requests,
            connections_max: self.max_connections,
            header_deadline: Duration::from_millis(self.header_deadline_ms),
            body_deadline: Duration::from_millis(self.body_deadline_ms),
            write_deadline: Duration::from_millis(self.write_deadline_ms),
            request_deadline: Duration::from_millis(self.request_deadline_ms),
            rows_deadline: Duration::from_millis(self.rows_deadline_ms),
            auto_truncate: self.auto_truncate,
        }
    }
}

impl Options {
    /// Threads that compute.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores).max(1)
    }

    /// Folder of the model cache.
    pub fn model_cache(&self) -> PathBuf {
        self.model_cache.clone().unwrap_or_else(default_model_cache)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_has_an_environment_variable_named_after_it() {
        let command = Options::command();
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            if ["help", "version", "print-digest"].contains(&long) {
                continue;
            }
            let expected = format!("MILLRACE_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(
                arg.get_env().and_then(|env| env.to_str()),
                Some(expected.as_str())
            );
        }
    }

    #[test]
    fn the_defaults_of_the_flags_are_those_of_the_limits() {
        let options = Options::parse_from(["server", "--service", "s.yaml"]);
        let from_flags = format!("{:?}", options.limits.http());
        assert_eq!(from_flags, format!("{:?}", HttpLimits::default()));
    }
}
