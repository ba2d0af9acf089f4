//! `spec.remote`: a paid API outside of the cluster, in the place of a server.

use kube::KubeSchema;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Pricing;
use crate::SecretKeyRef;

/// An API that answers rows for money and within limits. The pods of such a service hold workers
/// alone, and all of them together keep to its limits.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    // A rule and no pattern: an API server repeats a value that has not the form.
    validation = Rule::new("self.baseUrl.matches('^https?://[^/?#@]+(/[^?#@]*)?$')")
        .message("baseUrl must be http(s)://host[:port][/path], without credentials, query or fragment; the key belongs into a Secret, named by apiKeySecretRef"),
    validation = Rule::new("!has(self.rowsPerCall) || self.rowsPerCall <= 2048")
        .message("rowsPerCall can be at most 2048"),
    validation = Rule::new("!has(self.rowsPerCallMax) || self.rowsPerCallMax >= (has(self.rowsPerCall) ? self.rowsPerCall : 1)")
        .message("rowsPerCallMax must be at least rowsPerCall"),
    validation = Rule::new("!has(self.pricing) || self.api == 'Embeddings' || has(self.pricing.outputPerMillionTokens)")
        .message("pricing needs outputPerMillionTokens: answers are paid for as well"),
    validation = Rule::new("duration(self.timeout) >= duration('1s') && duration(self.timeout) <= duration('1h')")
        .message("timeout must be 1s to 1h"),
    validation = Rule::new("!has(self.stream) || !self.stream || self.api != 'Embeddings'")
        .message("stream needs api Chat or Responses: an embedding comes whole"),
)]
pub struct Remote {
    /// Where the API is, such as `https://api.openai.com/v1`: what its paths are appended to.
    #[schemars(length(min = 1, max = 1024))]
    pub base_url: String,

    /// Which of its endpoints answers.
    pub api: RemoteApi,

    /// Name of the model, as the API knows it; steps call it by the same name.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^\S+$"))]
    pub model: String,

    /// The key, in a Secret of the same namespace, under `apiKey` unless `key` names another. A local
    /// run takes it from the environment variable `MILLRACE_API_KEY`. Without one, calls carry no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,

    /// Rows that travel in one call. Their answer is split again; what cannot be split is asked row
    /// by row. By default 1, for `Embeddings` 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2048))]
    pub rows_per_call: Option<u32>,

    /// Lets the rows of a call grow up to this number while requests are what is short, and shrink
    /// again when answers get late or cannot be split. By default their number is fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2048))]
    pub rows_per_call_max: Option<u32>,

    /// What the API allows. All workers and jobs of the service keep to it together.
    #[serde(default)]
    pub limits: RemoteLimits,

    /// What calls cost. Needed for `budget` of a job, and for its `status.cost`; others can do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pricing: Option<Pricing>,

    /// Has answers sent piece by piece. `timeout` then bounds the wait for the next piece, and a whole
    /// answer may take ten times as long: for models that write or think for minutes, and for what lies
    /// between and ends connections that are silent. The results are the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,

    /// Longest wait for the answer of a call, or with `stream` for its next piece.
    #[serde(default = "default_timeout")]
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"))]
    pub timeout: Duration,
}

impl Remote {
    /// Rows that travel in one call at first.
    pub fn rows_per_call(&self) -> u32 {
        let default = match self.api {
            RemoteApi::Chat | RemoteApi::Responses => 1,
            RemoteApi::Embeddings => 256,
        };
        self.rows_per_call.unwrap_or(default)
    }

    /// Longest that a call may take.
    pub fn call_time_max(&self) -> std::time::Duration {
        let timeout: std::time::Duration = self.timeout.into();
        match self.stream {
            true => timeout * STREAM_TIMEOUTS_MAX,
            false => timeout,
        }
    }
}

/// How many times as long as the wait for a piece a streamed answer may take.
const STREAM_TIMEOUTS_MAX: u32 = 10;

fn default_timeout() -> Duration {
    std::time::Duration::from_secs(120).into()
}

/// An endpoint, as OpenAI has it.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RemoteApi {
    /// `/chat/completions`.
    Chat,
    /// `/embeddings`.
    Embeddings,
    /// `/responses`.
    Responses,
}

/// What an API allows. Days slide, and minutes do unless the algorithm is another one.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("self.algorithm != 'TokenBucket' || has(self.requestsPerMinute) || has(self.tokensPerMinute)")
        .message("algorithm TokenBucket needs requestsPerMinute or tokensPerMinute, by which its buckets are refilled"),
    validation = Rule::new("self.algorithm == 'TokenBucket' || !has(self.requestsBurst) && !has(self.tokensBurst)")
        .message("requestsBurst and tokensBurst need algorithm TokenBucket: a sliding window has no bucket"),
    validation = Rule::new("!has(self.requestsBurst) || has(self.requestsPerMinute) && self.requestsBurst <= self.requestsPerMinute")
        .message("requestsBurst needs requestsPerMinute, and can be at most as much"),
    validation = Rule::new("!has(self.tokensBurst) || has(self.tokensPerMinute) && self.tokensBurst <= self.tokensPerMinute")
        .message("tokensBurst needs tokensPerMinute, and can be at most as much"),
)]
pub struct RemoteLimits {
    /// How the API counts requests and tokens of a minute.
    #[serde(default)]
    pub algorithm: LimitAlgorithm,
    /// Most requests in any minute; of a bucket, those that a minute refills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub requests_per_minute: Option<u32>,
    /// Most requests that a full bucket lets in at once; by default those of a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub requests_burst: Option<u32>,
    /// Most tokens of prompts and answers in any minute; of a bucket, those that a minute refills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000_000_u64))]
    pub tokens_per_minute: Option<u64>,
    /// Most tokens that a full bucket lets in at once; by default those of a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000_000_u64))]
    pub tokens_burst: Option<u64>,
    /// Most requests in any day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests_per_day: Option<u32>,
    /// Most tokens of prompts and answers in any day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub tokens_per_day: Option<u64>,
    /// Most calls at one time. Fewer are made for a while when the API says that it is too much; 1
    /// asks one call after the other.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: u32,
}

impl Default for RemoteLimits {
    fn default() -> Self {
        Self {
            algorithm: LimitAlgorithm::default(),
            requests_per_minute: None,
            requests_burst: None,
            tokens_per_minute: None,
            tokens_burst: None,
            requests_per_day: None,
            tokens_per_day: None,
            concurrency: default_concurrency(),
        }
    }
}

fn default_concurrency() -> u32 {
    5
}

/// How an API counts what it lets in.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitAlgorithm {
    /// Any sixty seconds hold no more than a minute may.
    #[default]
    SlidingWindow,
    /// What is let in is taken out of a bucket, which is refilled evenly.
    TokenBucket,
}
