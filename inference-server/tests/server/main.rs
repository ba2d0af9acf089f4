//! The server as its clients see it: the real server over real sockets, with the stand-in backend.

mod analyze;
mod binary;
mod cache;
mod client;
mod faults;
mod keys;
mod overload;
mod replies;
mod scene;
