//! What worker and inference-server say to each other: MessagePack with named fields over HTTP on
//! a Unix socket, `POST /v1/rows` and `POST /v1/chunks`.

use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use crate::chunk::{Chunk, ChunkLimits};
use crate::row::RowError;

/// Path of the endpoint that takes [`RowsRequest`].
pub const ROWS_PATH: &str = "/v1/rows";

/// Path of the endpoint that takes [`ChunksRequest`].
pub const CHUNKS_PATH: &str = "/v1/chunks";

/// Content type of requests and replies.
pub const ROWS_CONTENT_TYPE: &str = "application/msgpack";

/// Texts to run through models, with priority *batch*.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowsRequest {
    /// Names of the models, each applied to every text.
    pub models: Vec<String>,
    /// The texts.
    pub texts: Vec<String>,
}

/// The answers, in the order of the request's texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowsReply {
    /// `rows[i][j]` is what model `j` said of text `i`.
    pub rows: Vec<Vec<ModelReply>>,
    /// Tokens that went through models for this request, without padding.
    pub tokens: u64,
}

/// Texts to cut into chunks that are short enough for models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunksRequest {
    /// Names of the models, whose tokens are counted.
    pub models: Vec<String>,
    /// The texts.
    pub texts: Vec<String>,
    /// How they are cut.
    pub limits: ChunkLimits,
}

/// The chunks, in the order of the request's texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunksReply {
    /// What became of each text.
    pub texts: Vec<ChunksOfText>,
}

/// The chunks of one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunksOfText {
    /// In the order of the text; at least one.
    Ok(Vec<Chunk>),
    /// Why it cannot be cut.
    Err(RowError),
}

/// What one model said of one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelReply {
    /// The prediction.
    Ok(Prediction),
    /// Why there is none.
    Err(RowError),
}

/// What a model predicts; its JSON form is the step's value in a result line and in the replies of
/// the online endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// One vector, `[hidden size]`.
    Embedding(Vec<f32>),
    /// Labels with their scores, best first.
    Labels(Vec<LabelScore>),
    /// Spans of the text, in order.
    Entities(Vec<Entity>),
    /// What a generic TorchScript module returned for the text, flattened.
    Values(Vec<f32>),
    /// What a language model wrote: a string, or JSON of the schema that was asked for.
    Answer(serde_json::Value),
}

/// A label and how likely it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelScore {
    /// Name of the label.
    pub label: String,
    /// Probability, 0 to 1; of a regression the number itself.
    pub score: f32,
}

/// A labelled span of the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entity {
    /// Label without its `B-`/`I-` prefix.
    pub entity: String,
    /// Mean probability over the span's tokens.
    pub score: f32,
    /// First character of the span, counted in Unicode scalar values.
    pub start: u32,
    /// One past the last character of the span.
    pub end: u32,
    /// The span's text.
    pub word: String,
}

impl Prediction {
    /// Whether every number is finite; NaN and infinity have no JSON form.
    pub fn is_finite(&self) -> bool {
        match self {
            Prediction::Embedding(values) | Prediction::Values(values) => {
                values.iter().all(|value| value.is_finite())
            }
            Prediction::Labels(labels) => labels.iter().all(|label| label.score.is_finite()),
            Prediction::Entities(entities) => {
                entities.iter().all(|entity| entity.score.is_finite())
            }
            // JSON has no other numbers.
            Prediction::Answer(_) => true,
        }
    }
}

/// Serialises a prediction as its bare value, without the tag that the wire needs.
pub struct Untagged<'a>(pub &'a Prediction);

impl Serialize for Untagged<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn seq<S: Serializer, T: Serialize>(items: &[T], serializer: S) -> Result<S::Ok, S::Error> {
            let mut seq = serializer.serialize_seq(Some(items.len()))?;
            for item in items {
                seq.serialize_element(item)?;
            }
            seq.end()
        }
        match self.0 {
            Prediction::Embedding(values) | Prediction::Values(values) => seq(values, serializer),
            Prediction::Labels(labels) => seq(labels, serializer),
            Prediction::Entities(entities) => seq(entities, serializer),
            Prediction::Answer(answer) => answer.serialize(serializer),
        }
    }
}
