//! Routes: which service answered which rows of a job that has several.

use serde::{Deserialize, Serialize};

use crate::cost::Cost;

/// Index of an arm among those of all routes of a job, in the order of its manifest. A route without
/// arms counts as one arm.
pub type ArmIndex = u32;

/// What became of the rows of a route, or of one of its arms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTally {
    /// Name of the route.
    pub route: String,
    /// Name of the arm's service; absent where the route has no arms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Rows whose result is its answer.
    pub succeeded: u64,
    /// Rows that failed there.
    pub failed: u64,
    /// Rows that it answered, and which another route was asked about because of its answer.
    pub escalated: u64,
    /// Tokens of all its calls.
    pub tokens: u64,
    /// What all its calls cost.
    #[serde(default, skip_serializing_if = "Cost::is_nothing")]
    pub cost: Cost,
}

impl RouteTally {
    /// Adds the numbers of another one.
    pub fn add(&mut self, other: &RouteTally) {
        let RouteTally {
            route: _,
            arm: _,
            succeeded,
            failed,
            escalated,
            tokens,
            cost,
        } = other;
        self.succeeded += succeeded;
        self.failed += failed;
        self.escalated += escalated;
        self.tokens += tokens;
        self.cost += *cost;
    }
}

/// The sums over tallies, each route and arm once, in the order of their first one.
pub fn sums<'a>(tallies: impl IntoIterator<Item = &'a RouteTally>) -> Vec<RouteTally> {
    let mut sums: Vec<RouteTally> = Vec::new();
    for tally in tallies {
        let same = |it: &&mut RouteTally| it.route == tally.route && it.arm == tally.arm;
        match sums.iter_mut().find(same) {
            Some(sum) => sum.add(tally),
            None => sums.push(tally.clone()),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_arm_has_a_sum_of_its_own() {
        let tally = |arm: Option<&str>, succeeded| RouteTally {
            route: "trial".to_owned(),
            arm: arm.map(str::to_owned),
            succeeded,
            ..RouteTally::default()
        };
        let all = [
            tally(Some("a"), 1),
            tally(Some("b"), 2),
            tally(Some("a"), 4),
        ];
        assert_eq!(sums(&all), [tally(Some("a"), 5), tally(Some("b"), 2)]);
    }
}
