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
        write!(f, "{} to {} tokens", grouped(least), grouped(most))?;
        if let (Some((least, most)), Some(currency)) = (self.cost, &self.currency) {
            let (least, most) = (least.short(), most.short());
            write!(f, ", {least} to {most} {currency}")?;
        }
        let (sampled, rows) = (grouped(self.sampled_rows), grouped(self.rows));
        write!(f, " (guessed from {sampled} of {rows} rows)")
    }
}

/// A number with a comma before each three of its digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = (digits.len() + 2) % 3 + 1;
    let (head, rest) = digits.split_at(first);
    let groups = rest.as_bytes().chunks(3).map(String::from_utf8_lossy);
    groups.fold(head.to_owned(), |all, group| format!("{all},{group}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_says_of_how_many_rows_it_is_in_numbers_that_can_be_read() {
        for (number, expected) in [(0, "0"), (999, "999"), (1_000, "1,000")] {
            assert_eq!(grouped(number), expected);
        }
        let forecast = Forecast {
            rows: 20_000,
            sampled_rows: 512,
            tokens: (12_345, 1_234_567),
            cost: None,
            currency: None,
            max_cost: None,
        };
        let said = "12,345 to 1,234,567 tokens (guessed from 512 of 20,000 rows)";
        assert_eq!(forecast.to_string(), said);
    }
}
