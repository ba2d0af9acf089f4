//! The lease stores: what both promise, and what the one on Redis does when the server fails.

mod conformance;
mod faults;
mod limits;
mod model;
mod proxy;
mod subject;
mod users;
