//! `InferenceService`: models that run together in one server.

use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    derive = "PartialEq",
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceServiceSpec {
    /// The models of this service. Several models give a combined analysis of each row.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<ModelSpec>,

    /// How requests are gathered into batches.
    #[serde(default)]
    pub batching: Batching,
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
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Folder in Hugging Face layout: `hf://owner/name` (looked up in the model cache),
    /// `file:///path`, or, for a local run, a path relative to the manifest.
    #[schemars(
        length(min = 1, max = 1024),
        regex(
            pattern = r"^(hf://[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*|file:///.+|[^:]+)$"
        )
    )]
    pub uri: String,

    /// Digest that the model's files must have, `sha256:` and 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
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
