//! What a job may spend, and what it has spent.

use millrace_protocol::cost::Cost;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount;

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
