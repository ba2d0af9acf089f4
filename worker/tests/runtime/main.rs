//! Rows through foreign servers: this project's own inference-server in a process of its own, which
//! speaks OpenAI's and TEI's protocols over TCP, and stand-ins for what it does not speak or do.

mod faults;
mod job;
mod oip;
mod real;
mod stand_in;
mod whole_job;
