//! One file per command.

pub mod cancel;
pub mod check;
pub mod completions;
pub mod dry_run;
pub mod errors;
pub mod lint;
pub mod list;
pub mod logs;
pub mod report;
pub mod results;
pub mod resume;
pub mod retry;
pub mod run;
pub mod status;
pub mod submit;
pub mod suspend;
pub mod top;
