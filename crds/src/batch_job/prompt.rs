//! `spec.steps[].prompt`: what a remote model is asked about each row.

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a model of a service with `remote` is asked about each row.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("!has(self.temperature) || (self.temperature >= 0.0 && self.temperature <= 2.0)")
        .message("temperature must be 0 to 2"),
)]
pub struct Prompt {
    /// What the model is told before any row. Plain text, the same for all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub system: Option<String>,

    /// A Jinja template over the fields of a row, such as `Summarise: {{ body }}`. What stands in a
    /// row is never taken for a template. By default the text alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub template: Option<String>,

    /// JSON schema of the answer, which then stands in the result as JSON instead of text. It must
    /// describe an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub output_schema: Option<Map<String, Value>>,

    /// Most tokens of the answer to one row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_output_tokens: Option<u32>,

    /// How freely the model answers; by default as the API has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

/// An object whose fields are its author's own.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
