//! Chunks of long texts: how they are cut, and where they lie.

use serde::{Deserialize, Serialize};

/// How texts are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkLimits {
    /// Whether chunks end where sentences do; else where words do.
    pub by_sentences: bool,
    /// Most tokens of a chunk, without those that a model adds to every text; `None` is as many as the
    /// models take. At least [`ChunkLimits::TOKENS_MIN`].
    pub tokens_max: Option<u32>,
    /// Most sentences of a chunk.
    pub sentences_max: Option<u32>,
    /// Most tokens at the end of a chunk that the next one begins with.
    pub overlap_tokens: u32,
    /// Most chunks of a text.
    pub chunks_max: u32,
}

impl ChunkLimits {
    /// Fewest tokens that a chunk may have at most: more than any single character has.
    pub const TOKENS_MIN: u32 = 16;
}

/// A chunk of a text: its bytes `start..end`, which neither begin nor end with white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Chunk {
    /// What stands there in `text`.
    pub fn of<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start as usize..self.end as usize]
    }
}
