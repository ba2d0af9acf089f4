//! What a job may spend, and what it has spent.

use millrace_protocol::cost::Cost;
use millrace_protocol::forecast::Forecast;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount;

/// What patches a job so that it goes on whose budget is spent; `AMOUNT` is for a person to fill in.
pub const RAISED_BUDGET: &str = r#"{"spec":{"budget":{"maxCost":"AMOUNT"}}}"#;

/// What a job may spend.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Budget {
    /// Most that the calls of the job may cost, in the currency of `remote.pricing` of its service,
    /// which must name prices: a decimal number as a string, such as `"12.50"`. Once it is spent no
    /// further call is made, and the job is given up as by `cancel`: what is done stays. Raised, the
    /// job goes on from there.
    #[schemars(schema_with = "amount::schema")]
    pub max_cost: Cost,
}

/// What a job has spent.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Spent {
    /// What its calls cost so far, those included whose rows were asked again: a decimal number.
    #[schemars(with = "String")]
    pub total: Cost,
    /// The same for each row that is done, rounded up in the twelfth decimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub per_row: Option<Cost>,
    /// The currency, such as `USD`.
    pub currency: String,
}

/// What a job is going to take, guessed from a few rows before its first call.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Estimate {
    /// Rows, as far as one knows.
    pub rows: u64,
    /// Tokens of prompts and answers, at least.
    pub tokens_least: u64,
    /// Tokens of prompts and answers, at most.
    pub tokens_most: u64,
    /// What they cost at least, where the service names prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cost_least: Option<Cost>,
    /// What they cost at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cost_most: Option<Cost>,
    /// The currency, such as `USD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
}

impl From<&Forecast> for Estimate {
    fn from(forecast: &Forecast) -> Self {
        let Forecast {
            rows,
            sampled_rows: _,
            tokens: (tokens_least, tokens_most),
            cost,
            currency,
            max_cost: _,
        } = forecast.clone();
        Self {
            rows,
            tokens_least,
            tokens_most,
            cost_least: cost.map(|(least, _)| least),
            cost_most: cost.map(|(_, most)| most),
            currency,
        }
    }
}

impl Spent {
    /// What so many rows cost.
    pub fn of(total: Cost, rows: u64, currency: &str) -> Self {
        Self {
            total,
            per_row: (rows > 0).then(|| total.per(rows)),
            currency: currency.to_owned(),
        }
    }
}
