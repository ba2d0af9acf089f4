//! Jobs that ask an API elsewhere, run by the built binaries against the stand-in: what its record
//! says of limits, of time, and of what was paid.

mod cost;
mod examples;
mod faults;
mod limits;
mod routes;
mod rows;
mod scene;
mod workers;
