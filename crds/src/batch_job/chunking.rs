//! `spec.input.chunking`: long texts in chunks.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Cuts texts into chunks, each of which is asked about on its own; the row still has one result.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
#[x_kube(
    validation = Rule::new("!has(self.maxTokens) || self.overlap * 2 <= self.maxTokens")
        .message("overlap must be at most half of maxTokens"),
    validation = Rule::new("!has(self.maxSentences) || self.by == 'Sentences'")
        .message("maxSentences means nothing for chunks by Tokens; remove it, or give by: Sentences"),
)]
pub struct Chunking {
    /// Where a text is cut.
    #[serde(default)]
    pub by: ChunkUnit,

    /// Most tokens of a chunk, without those that a model adds to every text. By default, and at most,
    /// what the models take. A service with `runtime` or `remote` needs it: nobody else knows their
    /// tokens, so that they are guessed, at 2.5 bytes a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 1_000_000))]
    pub max_tokens: Option<u32>,

    /// Most sentences of a chunk; by default as many as fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_sentences: Option<u32>,

    /// Most tokens at the end of a chunk that the next one begins with: whole words, or whole
    /// sentences, and never more than half of the chunk.
    #[serde(default)]
    #[schemars(range(min = 0, max = 500_000))]
    pub overlap: u32,

    /// Most chunks of a text; one with more ends as the row error `too_many_chunks`.
    #[serde(default = "default_max_chunks")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_chunks: u32,

    /// What becomes of the results of a text's chunks, in the steps that say nothing of it.
    #[serde(default)]
    pub join: ChunkJoin,
}

fn default_max_chunks() -> u32 {
    1_000
}

/// Where a text is cut.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkUnit {
    /// Between words.
    #[default]
    Tokens,
    /// Between sentences, as Unicode tells them; one that is too long is cut between words.
    Sentences,
}

/// What becomes of the results of a text's chunks.
#[derive(JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
// Without one of its own, an optional field keeps its description in the CRD.
#[schemars(description = "")]
pub enum ChunkJoin {
    /// A list of them, `[{"start", "end", "result"}]`: which characters of the text, and what was said
    /// of them.
    #[default]
    List,
    /// Vectors and scores become their mean, of length 1 if those of the chunks have it.
    Mean,
    /// Of each label the highest score.
    Max,
}
