//! A model's files: where they are, whether they are whole, what they say, and the tokeniser they
//! hold. Model bytes are untrusted, and nothing here computes with them.
//!
//! Apart from the models themselves because a preflight counts tokens where no libtorch is linked.

pub mod bounded;
pub mod chunks;
pub mod config;
pub mod folder;
pub mod settings;
pub mod source;
pub mod tokenizer;
