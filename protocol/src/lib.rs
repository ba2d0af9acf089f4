//! What planner, worker, inference-server and readers agree on.
//!
//! Pure data and pure functions: this crate knows neither Kubernetes nor an async runtime, opens
//! no file and reads no clock. The modules follow the way of the data:
//! [`plan`] → [`lease`] → [`row`] → [`wire`] → [`result`] → [`commit`] → [`manifest`],
//! and [`layout`] says where each of them lies in an output. In a cluster, [`registry`] is how the
//! workers of a service find its jobs, and [`report`] how the pods of a job say how they ended.
//! [`routes`] tells which of several services answered, [`cost`] counts money and [`forecast`] guesses it,
//! [`progress`] is what whoever asks is told of a job, and [`event`] what others are told when it is over.
//! [`indexes`] names shards in short, [`priority`] says whose question goes first, and [`plural`] words counts.

pub mod chunk;
pub mod commit;
pub mod cost;
pub mod event;
pub mod forecast;
pub mod indexes;
pub mod layout;
pub mod lease;
pub mod ledger;
pub mod manifest;
pub mod plan;
pub mod plural;
pub mod priority;
pub mod progress;
pub mod registry;
pub mod report;
pub mod result;
pub mod routes;
pub mod row;
pub mod tally;
pub mod wire;
