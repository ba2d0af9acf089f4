//! `spec.routes`: which service answers which rows, where there are several.

use kube::KubeSchema;
use millrace_protocol::cost::Cost;
use millrace_protocol::routes::RouteTally;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ServiceRef;

/// Which rows a service answers, or several of them in shares.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.serviceRef) != has(self.arms)")
        .message("give either serviceRef, the InferenceService that answers, or arms, several of them in shares"),
    validation = Rule::new("!has(self.arms) || self.arms.all(arm, self.arms.exists_one(other, other.serviceRef.name == arm.serviceRef.name))")
        .message("arms must be of different services: an arm is told by its service's name"),
    validation = Rule::new("!has(self.escalate) || self.escalate.to != self.name")
        .message("escalate.to is the route itself; name a later one"),
)]
pub struct Route {
    /// Its name, which each result line has as `route`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    )]
    pub name: String,

    /// A Jinja expression over the fields of the row, as `input.filter.expression`, such as
    /// `text|length < 400 and lang == 'en'`. The first route whose expression is true for a row takes
    /// it; for a row that lacks a field which it names, none is. A route without one takes every row
    /// that comes to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub when: Option<String>,

    /// The InferenceService that answers the rows; it lies in the job's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<ServiceRef>,

    /// Several InferenceServices, among which rows are shared out: which one a row gets is decided by
    /// its content alone, and so is the same in every run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 5))]
    pub arms: Option<Vec<Arm>>,

    /// Which answers are not good enough, and who is asked about their rows instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalate: Option<Escalate>,
}

impl Route {
    /// The services that may answer, and the share of each.
    pub fn answerers(&self) -> Vec<(&ServiceRef, u32)> {
        let whole = self.service_ref.iter().map(|service| (service, 1));
        let arms = self.arms.iter().flatten();
        let arms = arms.map(|arm| (&arm.service_ref, arm.weight));
        whole.chain(arms).collect()
    }
}

/// A service that answers a share of a route's rows.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arm {
    /// The InferenceService, whose name each of its result lines has as `arm`.
    pub service_ref: ServiceRef,

    /// Its share: of the weights 9 and 1, the first arm gets nine rows of ten.
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
}

/// Which answers are not good enough, and who is asked about their rows instead.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub struct Escalate {
    /// A Jinja expression over the steps' results, by their names, such as `mood.confidence < 0.7`, or
    /// `mood[0].score < 0.7` of a classifier of one's own. What it is true for is asked again. A field
    /// that an answer lacks is less than any number. A row that failed is not asked again.
    #[schemars(length(min = 1, max = 4096))]
    pub when: String,

    /// Name of a later route, whose service is asked, whatever its `when` says. Its answer is the row's
    /// result.
    #[schemars(length(min = 1, max = 63))]
    pub to: String,
}

/// What became of the rows of a route, or of one of its arms.
#[derive(JsonSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteCounts {
    /// Name of the route.
    pub route: String,
    /// Name of the arm's service, where the route has arms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Rows whose result is its answer.
    pub succeeded: u64,
    /// Rows that failed there.
    pub failed: u64,
    /// Rows whose answer was not good enough, and which another route was asked about.
    pub escalated: u64,
    /// Tokens that went through its models.
    pub tokens: u64,
    /// What its calls cost, where its service names prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cost: Option<Cost>,
}

impl From<&RouteTally> for RouteCounts {
    fn from(tally: &RouteTally) -> Self {
        let RouteTally {
            route,
            arm,
            succeeded,
            failed,
            escalated,
            tokens,
            cost,
        } = tally.clone();
        Self {
            route,
            arm,
            succeeded,
            failed,
            escalated,
            tokens,
            cost: Some(cost).filter(|cost| !cost.is_nothing()),
        }
    }
}
