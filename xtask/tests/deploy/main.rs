//! What is deployed with the programs: the chart, dashboard and alerts, what GitOps tools need to know,
//! and the examples that are applied. Nothing here needs a cluster.

mod alerts;
mod chart;
mod examples;
mod files;
mod health;
mod metrics;
mod operator;
mod programs;
mod redis;
mod values;
