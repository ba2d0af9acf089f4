//! Jobs that ask an API elsewhere, run by the built binaries against the stand-in: what its record
//! says of limits, of time, and of what was paid.

mod cache;
mod chunks;
mod cost;
mod dedup;
mod examples;
mod faults;
mod limits;
mod pace;
mod routes;
mod rows;
mod stream;
mod workers;

use millrace_e2e::remote as scene;
