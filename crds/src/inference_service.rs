//! `InferenceService`: models that run together in one server.

mod online;
mod pricing;
mod remote;
mod runtime;
mod template;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretRef;
pub use online::{Auth, Cache, CacheStatus};
pub use pricing::Pricing;
pub use remote::{LimitAlgorithm, Remote, RemoteApi, RemoteLimits};
pub use runtime::{Protocol, Runtime, RuntimeModel, RuntimeTask, Variable};
pub use template::{
    ConfigMapVolume, EmptyDirVolume, Medium, ModelCache, PodTemplate, ResourceClaim, Resources,
    Toleration, TopologySpread, Volume, VolumeClaim, WhenUnsatisfiable,
};

/// One or more models served together: online over HTTP, and to the BatchJobs that name it.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "millrace.dev",
    version = "v1alpha1",
    kind = "InferenceService",
    plural = "inferenceservices",
    shortname = "mis",
    doc = "Models that run together in one server.",
    namespaced,
    status = "InferenceServiceStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"URL","type":"string","jsonPath":".status.url"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Replicas","type":"integer","jsonPath":".status.replicas"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    // A list of what can answer rows, so that a further way is a further entry.
    validation = Rule::new("[has(self.models), has(self.runtime), has(self.remote)].exists_one(given, given)")
        .message("give exactly one of models, which this project's own server runs, runtime, a server image of your own, and remote, an API elsewhere"),
    validation = Rule::new("!has(self.auth) || has(self.models)")
        .message("auth needs models: a server of your own checks keys in its own way"),
    validation = Rule::new("!has(self.modelCache) || (has(self.models) && self.models.all(m, has(m.source.digest)))")
        .message("modelCache needs models, each with source.digest: without it nobody could tell whether what lies in the cache is what is meant"),
    validation = Rule::new("!has(self.template) || !has(self.template.podLabels) || self.template.podLabels.all(name, !name.startsWith('millrace.dev/'))")
        .message("template.podLabels: labels of millrace.dev are the operator's, which finds its pods by them; name yours otherwise"),
)]
pub struct InferenceServiceSpec {
    /// The models of this service, run by this project's own server. Several models give a combined
    /// analysis of each row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<ModelSpec>,

    /// A server image of one's own in the place of `models`, such as vLLM,
    /// text-embeddings-inference or Triton. A local run does not start it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,

    /// An API elsewhere that answers for money and within limits, in the place of a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,

    /// How requests are gathered into batches. Means nothing with `runtime`, whose server has
    /// settings of its own, nor with `remote`.
    #[serde(default)]
    pub batching: Batching,

    /// Whether answers are kept for texts that come again. Means nothing with `runtime`.
    #[serde(default)]
    pub cache: Cache,

    /// Who may send requests over the network: whoever brings a key. Without it everybody may who
    /// reaches the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,

    /// How many pods serve. Means nothing for a local run, which is one server.
    #[serde(default)]
    pub autoscaling: Autoscaling,

    /// Secrets of the same namespace whose credentials the workers use for the jobs that name them
    /// and for model sources. Means nothing for a local run, which uses its environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub secrets: Vec<SecretRef>,

    /// Where fetched models stay for other pods. Without it each pod fetches them. Means nothing for
    /// a local run, whose models stay in its model cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_cache: Option<ModelCache>,

    /// Where the pods run and what they get. Means nothing for a local run.
    #[serde(default)]
    pub template: PodTemplate,
}

impl InferenceServiceSpec {
    /// What calls of its API cost, if it names prices.
    pub fn pricing(&self) -> Option<&Pricing> {
        self.remote.as_ref()?.pricing.as_ref()
    }

    /// The Secret with which a model's source is read, if one is.
    pub fn credentials_of<'a>(&'a self, model: &'a ModelSpec) -> Option<&'a SecretRef> {
        model.source.credentials.as_ref().or(self.secrets.first())
    }

    /// The names by which steps can call models, whoever serves them.
    pub fn model_names(&self) -> impl Iterator<Item = &str> {
        let own = self.models.iter().map(|model| model.name.as_str());
        let brought = self.runtime.iter().flat_map(|runtime| &runtime.models);
        let elsewhere = self.remote.iter().map(|remote| remote.model.as_str());
        own.chain(brought.map(|model| model.name.as_str()))
            .chain(elsewhere)
    }
}

impl ModelSpec {
    /// Name of the model's folder among those that were fetched: by what it holds where that is
    /// known, so that services can share it.
    pub fn folder(&self) -> String {
        let digest = self.source.digest.as_ref();
        digest.map_or_else(|| self.name.clone(), |digest| digest.replace(':', "-"))
    }
}

/// How many pods serve.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.maxReplicas >= self.minReplicas")
        .message("maxReplicas must be at least minReplicas"),
)]
pub struct Autoscaling {
    /// Who decides how many pods there are.
    #[serde(default)]
    pub mode: AutoscalingMode,
    /// Pods that are kept although nothing is to be done; 0 lets the service go to sleep.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_replicas: u32,
    /// Most pods.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_replicas: u32,
    /// How long no shard may be open or leased before the pods above `minReplicas` are taken away.
    #[serde(default = "default_idle_seconds")]
    #[schemars(range(min = 0, max = 604_800))]
    pub idle_seconds: u32,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            mode: AutoscalingMode::default(),
            min_replicas: default_replicas(),
            max_replicas: default_replicas(),
            idle_seconds: default_idle_seconds(),
        }
    }
}

/// Who decides how many pods a service has.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AutoscalingMode {
    /// The operator: by the backlog of the service's jobs, how fast its pods have been, the jobs'
    /// deadlines, and how long a pod takes to come up.
    #[default]
    Backlog,
    /// Somebody else, such as KEDA or a HorizontalPodAutoscaler: the operator leaves the number of
    /// the Deployment alone and says in `status.replicas` how many it would have.
    External,
}

fn default_replicas() -> u32 {
    1
}

fn default_idle_seconds() -> u32 {
    300
}

/// What became of the service.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceServiceStatus {
    /// `Ready` says whether as many pods answer as should; `Reconciling` and `Stalled` say why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where online requests are answered, within the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Pods that should serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Pods that serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<u32>,
    /// Since when no shard has been open or leased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
    /// How long a pod took from its creation until it served, as last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_start_seconds: Option<u32>,
    /// Tokens that one pod works off per second, as last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// What the caches of the pods knew, where `spec.cache` is enabled; written when the rate has moved by
    /// a hundredth or the counts have doubled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,
}

/// One model.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.pooling) || self.task == 'Embedding'")
        .message("pooling is for task Embedding only; remove it or change task"),
    validation = Rule::new("!has(self.normalize) || self.task == 'Embedding'")
        .message("normalize is for task Embedding only; remove it or change task"),
    validation = Rule::new("!has(self.activation) || self.task == 'SequenceClassification'")
        .message("activation is for task SequenceClassification only; remove it or change task"),
    validation = Rule::new("!has(self.labels) || self.task == 'SequenceClassification' || self.task == 'TokenClassification'")
        .message("labels are for classification tasks only; remove them or change task"),
)]
pub struct ModelSpec {
    /// Name by which steps and requests call the model.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    )]
    pub name: String,

    /// What the model does.
    pub task: Task,

    /// Where the model's files are.
    pub source: Source,

    /// Number format of weights and computation.
    #[serde(default)]
    pub dtype: Dtype,

    /// Longest text in tokens, special tokens included; longer texts are cut. By default what the
    /// model's own files say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3, max = 32_768))]
    pub max_length: Option<u32>,

    /// How token vectors become one. By default what `1_Pooling/config.json` says, else `Mean`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,

    /// Whether embeddings are scaled to length 1. By default true if `modules.json` names a
    /// Normalize module or is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,

    /// Names of the classes, in the order of the logits. By default the config's `id2label`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10_000), inner(length(min = 1, max = 256)))]
    pub labels: Option<Vec<String>>,

    /// How logits become scores. By default `Sigmoid` if the config's `problem_type` is
    /// `multi_label_classification` or there is one label, else `Softmax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
}

/// What a model does.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Task {
    /// One vector per text.
    Embedding,
    /// Label scores per text.
    SequenceClassification,
    /// Labelled spans of the text.
    TokenClassification,
    /// A generic TorchScript module, only where the administrator allows it.
    TorchScript,
}

/// Where a model's files are.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.uri.matches('^[A-Za-z0-9+.-]+://[^/]*[@:]')")
        .message("a URI cannot carry credentials, nor a port; give them through spec.secrets"),
    validation = Rule::new("!self.uri.matches('^s3://(.*/)?[.][.](/.*)?$')")
        .message("a URI cannot climb with `..`; name the place that it leads to"),
)]
pub struct Source {
    /// Folder in Hugging Face layout: `s3://bucket/path` (in a cluster), `hf://owner/name` (looked
    /// up in the model cache of a local run), `file:///path`, or, for a local run, a path relative
    /// to the manifest.
    #[schemars(
        length(min = 1, max = 1024),
        regex(
            // An API server repeats a value that has not the form, and never one that a rule refuses.
            pattern = r"^(hf://[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*|s3://[A-Za-z0-9][A-Za-z0-9._-]*/.+|file:///.+|[^:]+|[A-Za-z0-9+.-]+://[^/]*[@:].*)$"
        )
    )]
    pub uri: String,

    /// Digest that the model's files must have, `sha256:` and 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,

    /// Secret of the same namespace with the credentials of the source; the first one of `secrets`
    /// by default. Means nothing for a local run, which uses its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretRef>,
}

/// Number format of weights and computation.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// The fastest format that the device computes natively and that keeps results close to
    /// Float32: BFloat16 or Float16 where there are units for it, else Float32.
    #[default]
    Auto,
    /// 32-bit floats.
    Float32,
    /// bfloat16.
    BFloat16,
    /// IEEE half precision.
    Float16,
}

/// How token vectors become one.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub enum Pooling {
    /// Mean over all tokens.
    Mean,
    /// The first token's vector.
    Cls,
}

/// How logits become scores.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub enum Activation {
    /// Scores of all labels sum to 1.
    Softmax,
    /// Each label's score stands alone.
    Sigmoid,
}

/// How requests are gathered into batches.
#[derive(JsonSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Batching {
    /// Most tokens in a batch. By default what the backend likes best.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_batch_tokens: Option<u32>,
    /// Most texts in a batch.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_batch_size: u32,
    /// Longest an online request waits for company while the engine is idle, such as `2ms`.
    #[schemars(
        length(max = 16),
        regex(pattern = r"^[0-9]{1,4}(\.[0-9]{1,3})?(ms|s)$")
    )]
    pub max_wait: Duration,
    /// Bounds of the queue.
    pub queue: Queue,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_batch_tokens: None,
            max_batch_size: 512,
            max_wait: std::time::Duration::from_millis(2).into(),
            queue: Queue::default(),
        }
    }
}

/// Bounds of the queue; a request above them is answered 429.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Queue {
    /// Most texts waiting.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_items: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_items: 16_384 }
    }
}
