//! Jobs that ask an API elsewhere, run by the built binaries against the stand-in: what its record
//! says of limits, of time, and of what was paid.

mod cache;
mod chaos;
mod chunks;
mod cost;
mod credentials;
mod dedup;
mod examples;
mod fair;
mod faults;
mod http2;
mod limits;
mod pace;
mod priority;
mod routes;
mod rows;
mod served;
mod stream;
mod workers;

use millrace_e2e::remote as scene;
