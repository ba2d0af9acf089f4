//! What the commands that speak to a cluster share: reading at one end, printing at the other, and
//! what is made of it in between, which is pure.

pub mod change;
pub mod connect;
pub mod end;
pub mod events;
pub mod explain;
pub mod follow;
pub mod fulfil;
pub mod gather;
pub mod hints;
pub mod jobs;
pub mod redact;
pub mod show;
pub mod sources;
pub mod summary;
pub mod ticker;
pub mod verdict;
pub mod workers;
