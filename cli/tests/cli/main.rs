//! The real `millrace` binary: what it prints, where, and how it exits.

mod cluster;
mod foreign;
mod help;
mod lint;
mod read;
mod run;
mod support;
