//! One file per command.

pub mod dry_run;
pub mod errors;
pub mod lint;
pub mod results;
pub mod run;
