//! What a job that asks an API will take and cost, guessed before its first call.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// What a job will take and cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// Its rows, as far as one knows.
    pub rows: u64,
    /// Rows that were looked at.
    pub sampled_rows: u64,
    /// Tokens of prompts and answers, at least and at most.
    pub tokens: (u64, u64),
    /// What they cost, at least and at most; absent where the service names no prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<(Cost, Cost)>,
    /// The currency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Most that the job may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Cost>,
}

impl Forecast {
    /// What is to be said where the job may cost more than it may.
    pub fn warning(&self) -> Option<String> {
        let (least, most) = self.cost?;
        let max = self.max_cost.filter(|max| *max < most)?;
        let currency = self.currency.as_deref().unwrap_or_default();
        let surely = if max < least { "will" } else { "may" };
        Some(format!(
            "spec.budget.maxCost is {max} {currency}: the job {surely} stop before its end"
        ))
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = self.tokens;
        write!(f, "{least} to {most} tokens")?;
        if let (Some((least, most)), Some(currency)) = (self.cost, &self.currency) {
            let (least, most) = (least.short(), most.short());
            write!(f, ", {least} to {most} {currency}")?;
        }
        write!(f, " (guessed from {} rows)", self.sampled_rows)
    }
}
