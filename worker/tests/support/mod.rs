//! Servers that tests start for themselves. A test file takes them with
//! `#[path = "../support/mod.rs"] mod support;` and each uses its own part.
#![allow(dead_code)]

pub mod redis_server;
