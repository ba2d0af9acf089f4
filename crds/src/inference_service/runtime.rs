//! `spec.runtime`: a server image that the user brings, in the place of this project's own server.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A server image of one's own, such as vLLM, text-embeddings-inference or Triton. It runs beside
/// the same worker, which speaks to it over HTTP within the pod.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("self.protocol != 'OpenAI' || self.models.all(m, m.task == 'Embedding')")
        .message("a server of protocol OpenAI is asked for embeddings only; use task Embedding, or another protocol"),
    validation = Rule::new("self.protocol != 'TEI' || size(self.models) == 1")
        .message("a server of protocol TEI has exactly one model"),
    validation = Rule::new("self.models.all(m, has(m.labels) == (self.protocol == 'OIP' && m.task == 'SequenceClassification'))")
        .message("labels name the scores of a model with protocol OIP and task SequenceClassification: give them there, and nowhere else"),
)]
pub struct Runtime {
    /// Image of the server.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^\S+$"))]
    pub image: String,

    /// Entry point; by default the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,

    /// Arguments; by default the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    pub args: Vec<String>,

    /// Environment variables. They can be read by whoever reads the service: no place for secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<Variable>,

    /// Port that the server listens on. A process without rights may not be allowed one below 1024.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,

    /// What the server speaks.
    pub protocol: Protocol,

    /// Path that answers 200 once the server is ready. By default `/health`, for protocol OIP
    /// `/v2/health/ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), regex(pattern = r"^/[A-Za-z0-9._~/?&=%-]*$"))]
    pub ready_path: Option<String>,

    /// Most texts in one request. By default what the server says of itself where it does (TEI),
    /// else what the worker likes; a request that the server calls too large is halved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_batch_size: Option<u32>,

    /// The models that the server serves, as far as steps name them.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub models: Vec<RuntimeModel>,
}

impl Runtime {
    /// Path that answers 200 once the server is ready.
    pub fn ready_path(&self) -> &str {
        let default = match self.protocol {
            Protocol::OpenAi | Protocol::Tei => "/health",
            Protocol::Oip => "/v2/health/ready",
        };
        self.ready_path.as_deref().unwrap_or(default)
    }
}

/// An environment variable.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Variable {
    /// Name.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.-]*$")
    )]
    pub name: String,
    /// Value.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// What a server speaks.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// `/v1/embeddings` as OpenAI has it.
    #[serde(rename = "OpenAI")]
    OpenAi,
    /// `/embed` and `/predict` as text-embeddings-inference has them.
    #[serde(rename = "TEI")]
    Tei,
    /// The Open Inference Protocol v2: one BYTES input of texts, the first output is FP32.
    #[serde(rename = "OIP")]
    Oip,
}

/// A model of a server that the user brings.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeModel {
    /// Name by which steps call the model.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    )]
    pub name: String,

    /// What the model does.
    pub task: RuntimeTask,

    /// Name by which the server knows the model, such as `BAAI/bge-m3`; by default the name above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub served_name: Option<String>,

    /// Names of the classes, in the order of the scores, where the server does not say them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10_000), inner(length(min = 1, max = 256)))]
    pub labels: Option<Vec<String>>,
}

impl RuntimeModel {
    /// Name by which the server knows the model.
    pub fn served_name(&self) -> &str {
        self.served_name.as_deref().unwrap_or(&self.name)
    }
}

/// What a model of such a server does.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RuntimeTask {
    /// One vector per text.
    Embedding,
    /// Label scores per text.
    SequenceClassification,
}
