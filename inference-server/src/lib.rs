//! The inference-server: an HTTP edge, a queue with two priorities, a dynamic batcher and engine
//! threads.
//!
//! The modules follow the way of a text: [`http`] takes it, [`millrace_answers`] may know its answer,
//! [`inference`] tokenises it off the async runtime, [`queue`] holds it, [`batcher`] decides with whom it runs, [`engine`] runs the
//! batch on the model and answers. [`server`] puts them together and takes them apart again.

pub mod answers;
pub mod batcher;
pub mod engine;
pub mod http;
pub mod inference;
pub mod metrics;
pub mod options;
pub mod queue;
pub mod server;
pub mod service_file;
mod trace;
pub mod work;
