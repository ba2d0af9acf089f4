//! Counts of rows, tokens and money. Sums of tallies are the only totals millrace reports.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// How the rows of a shard, a run or a job ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Rows with a result line.
    pub succeeded: u64,
    /// Rows with an error line.
    pub failed: u64,
    /// Rows filtered out on purpose: neither result nor error.
    pub skipped: u64,
}

impl Rows {
    /// All rows that were read.
    pub fn total(&self) -> u64 {
        self.succeeded + self.failed + self.skipped
    }
}

/// Rows, the tokens the models computed for them, and what was paid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How the rows ended.
    pub rows: Rows,
    /// Tokens that went through a model, summed over steps, without padding.
    pub tokens: u64,
    /// What was paid for calls of a paid API, those included whose rows were asked again.
    #[serde(default, skip_serializing_if = "Cost::is_nothing")]
    pub cost: Cost,
}

impl AddAssign for Rows {
    fn add_assign(&mut self, other: Self) {
        let Rows {
            succeeded,
            failed,
            skipped,
        } = other;
        self.succeeded += succeeded;
        self.failed += failed;
        self.skipped += skipped;
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Tally { rows, tokens, cost } = other;
        self.rows += rows;
        self.tokens += tokens;
        self.cost += cost;
    }
}

impl Add for Tally {
    type Output = Tally;

    fn add(mut self, other: Self) -> Tally {
        self += other;
        self
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), Tally::add)
    }
}
