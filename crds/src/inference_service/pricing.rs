//! `spec.remote.pricing`: what the calls of an API cost.

use millrace_protocol::cost::{Cost, Prices};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount;

/// What an API takes for its calls: decimal numbers as strings, such as `"0.15"`.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Pricing {
    /// Price of a million tokens of prompts.
    #[schemars(schema_with = "amount::schema")]
    pub input_per_million_tokens: Cost,

    /// Price of a million tokens of answers; for `Embeddings` there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "amount::schema")]
    pub output_per_million_tokens: Option<Cost>,

    /// Price of a call, whatever its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "amount::schema")]
    pub per_call: Option<Cost>,

    /// Currency of the prices, by its ISO 4217 code. Amounts are summed and never converted.
    #[serde(default = "default_currency")]
    #[schemars(regex(pattern = "^[A-Z]{3}$"))]
    pub currency: String,
}

impl Pricing {
    /// The prices.
    pub fn prices(&self) -> Prices {
        let Self {
            input_per_million_tokens,
            output_per_million_tokens,
            per_call,
            currency: _,
        } = self;
        Prices::new(
            *input_per_million_tokens,
            output_per_million_tokens.unwrap_or_default(),
            per_call.unwrap_or_default(),
        )
    }
}

fn default_currency() -> String {
    "USD".to_owned()
}
